package verb_test

import (
	"crypto/rsa"
	"crypto/x509"
	"strings"
	"testing"
	"unicode"

	"guardhouse/console/verb"
)

func mustRSA(t *testing.T, c *x509.Certificate) *rsa.PublicKey {
	t.Helper()
	k, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok {
		t.Fatal("not RSA")
	}
	return k
}

func TestSplitKeepsQuotedWords(t *testing.T) {
	for line, want := range map[string]string{
		`host add "a b" 'c "d' e\ f`: `host|add|a b|c "d|e f`,
		"  a\tb\r\n":                 "a|b",
		`''`:                         "",
		`a"b"'c'`:                    "abc",
		`$HOME *.txt ; rm`:           "$HOME|*.txt|;|rm",
	} {
		words, err := verb.Split(line)
		if err != nil || strings.Join(words, "|") != want {
			t.Errorf("%q became %q, %v", line, words, err)
		}
	}
	for _, line := range []string{`"a`, `a\`, `'`, strings.Repeat("a ", 65), strings.Repeat("a", verb.MaxLine+1)} {
		if _, err := verb.Split(line); err == nil {
			t.Errorf("%.20q was taken", line)
		}
	}
}

func TestParseRefusesWhatTheTableDoesNotKnow(t *testing.T) {
	for line, says := range map[string]string{
		"":                               "no verb",
		"hots list":                      "there is no verb",
		"host":                           "host list",
		"host list extra":                "takes no",
		"host add":                       "missing NAME",
		"host add a/b":                   "not a name",
		"host add a --colour red":        "has no --colour",
		"host add a --class":             "needs a value",
		"host add a --class b --class c": "twice",
		"service set --http maybe":       "not one of on, off",
		"service set --health-life 8":    "not a duration",
		"log show --boot -3":             "not one of",
		"log show --lines many":          "not a number",
		"network show --toml=yes":        "takes no value",
		"admin add grace emperor":        "not one of",
		"key new --bits 1024":            "not one of",
		"host add a --note " + strings.Repeat("x", 300): "longer",
	} {
		words, err := verb.Split(line)
		if err == nil {
			_, _, err = verb.Parse(words)
		}
		if err == nil || !strings.Contains(verb.Explain(err).Error(), says) || verb.Explain(err).Code != verb.ExitUsage {
			t.Errorf("%.40q: %v", line, err)
		}
	}
	words, _ := verb.Split("log show hgs --boot -1 --lines=20 --json")
	v, a, err := verb.Parse(words)
	if err != nil || v.Name != "log show" || a.Int("boot", 0) != -1 || a.Int("lines", 0) != 20 || !a.JSON || a.Get("service") != "hgs" {
		t.Errorf("%v %v %v", v, a, err)
	}
	if v, a, err := verb.Parse([]string{"host", "add", "--help"}); err != nil || v.Name != "help" || a.Get("topic") != "host add" {
		t.Errorf("--help gave %v %v", a, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range verb.All() {
		f.Add(v.Example)
	}
	f.Add(`host add "a b" --class='x' --json`)
	f.Add("\x00\x1b[2J \"")
	f.Fuzz(func(t *testing.T, line string) {
		words, err := verb.Split(line)
		if err != nil {
			return
		}
		v, _, err := verb.Parse(words)
		if err == nil && v == nil {
			t.Fatal("no verb and no error")
		}
		if err != nil {
			clean(t, verb.FailurePage(verb.Explain(err)).String())
		}
	})
}

// clean fails where text could command a terminal or is too wide.
func clean(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%q holds %U", text, r)
		}
	}
	checkWidth(t, "failure", text)
}

func FuzzParseInput(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("\xff\xfeA\x00A\x00"))
	f.Add([]byte{0x30, 0x82, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := verb.ParseInput(data)
		if err == nil && len(in.SPKI) == 0 {
			t.Fatal("no key and no error")
		}
	})
}

func FuzzNetwork(f *testing.F) {
	f.Add("[[interface]]\nname='front'\nmac=['any']\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := verb.ParseNetwork([]byte(text)); err != nil {
			clean(t, verb.FailurePage(verb.Explain(err)).String())
		}
	})
}

func TestPagesCannotCommandATerminal(t *testing.T) {
	p := new(verb.Page).Line("a\x1b[2Jb\u202ec\x7f %s", "\u009b31m").Field("x\r", "%s", "y\ny").Table([]string{"A", "B"}, [][]string{{"\x07", strings.Repeat("w", 90)}})
	clean(t, p.String())
	b, err := verb.JSON(map[string]string{"k": "a\x1b\u009b\u202e\U000e0001é"})
	if err != nil {
		t.Fatal(err)
	}
	clean(t, string(b))
	if !strings.Contains(string(b), `\u009b\u202e\udb40\udc01é`) {
		t.Errorf("JSON: %s", b)
	}
}
