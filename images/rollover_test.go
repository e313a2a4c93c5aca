//go:build qemu

package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"guardhouse/board/lab"
	"guardhouse/images/keys"
	"guardhouse/images/measure"
	"guardhouse/initramfs"
)

// One image that both key sets have signed starts on a machine throughout the change of its firmware from the old set to the new; the
// updates that change it are taken by firmware, one signed by the wrong key is not, and each state measures the PCR 7 that was predicted
// and signed. When at last the old certificate is forbidden, what it has signed starts no more.
func TestFirmwareGoesFromOneKeySetToTheNext(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1795000000")
	var sets []*keys.Set
	for _, name := range []string{"Contoso 2026", "Contoso 2027"} {
		s, err := keys.Make(filepath.Join(t.TempDir(), "keys"), name, false, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, s)
	}
	old, next := sets[0], sets[1]
	states := keys.Rollover(old, next)
	b := throwAway(t, "rollover", Options{Keys: next, Also: []*keys.Set{old}}, updateFiles(t, old, next)...)
	image, err := os.ReadFile(filepath.Join(b.Out, UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Options{Dir: t.TempDir(), Cache: testCache(t), Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.EnrollFirmware("rollover", old.Variables(nil), true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	n, err := l.StartNode(ctx, lab.NodeOptions{Name: "rollover", Image: filepath.Join(b.Out, DiskFile), SecureBoot: true, DataMB: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Kill()
	read := func(pattern string) []string {
		t.Helper()
		got, err := n.Serial.Expect(ctx, regexp.MustCompile(pattern))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for i, state := range states {
		p, err := measure.Predict(image, measure.Options{SecureBoot: true, Firmware: measure.FirmwareIn(state, nil, next, old)})
		if err != nil {
			t.Fatal(err)
		}
		if got := read(fmt.Sprintf(`STEP %d PCR 7 = (.*)\.`, i))[1]; got != hex.EncodeToString(p.PCR7[:])+" <nil>" {
			t.Errorf("%s: PCR 7 is %s, predicted %x", state.Name, got, p.PCR7)
		}
		if got := read(fmt.Sprintf(`STEP %d refused: (.*)\.`, i))[1]; !strings.Contains(got, "permission denied") && !strings.Contains(got, "not permitted") {
			t.Errorf("%s: an update by the wrong key: %s", state.Name, got)
		}
		if got := read(fmt.Sprintf(`STEP %d update: (.*)\.`, i))[1]; got != "<nil>" {
			t.Errorf("%s: %s", state.Name, got)
		}
	}
	if got := read(`Access Denied|STEP 6`); got[0] != "Access Denied" {
		t.Error("an image with a forbidden signature started")
	}
}

// updateFiles are the steps, then a dbx that forbids the old certificate, and one that is signed by a key which may not.
func updateFiles(t *testing.T, old, next *keys.Set) (list []initramfs.Entry) {
	t.Helper()
	now := time.Unix(1795000000, 0)
	updates, files, err := keys.RolloverSteps(old, next, now)
	if err != nil {
		t.Fatal(err)
	}
	forbid := keys.Update{Name: "dbx", Append: true, Data: keys.CertList(next.Owner, old.Certs[keys.DB]), Time: now}
	file, err := next.SignUpdate(forbid)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := keys.Make(filepath.Join(t.TempDir(), "keys"), "Somebody else", false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := stranger.SignUpdate(forbid)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, u keys.Update, file []byte) {
		guid := "8be4df61-93ca-11d2-aa0d-00e098032b8c"
		if strings.HasPrefix(u.Name, "db") {
			guid = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
		}
		content := bytes.Join([][]byte{[]byte(u.Name + "-" + guid + "\n"), binary.LittleEndian.AppendUint32(nil, u.Attributes()), file}, nil)
		list = append(list, initramfs.Entry{Path: "/updates/" + name, Kind: initramfs.File, Perm: 0o644, Data: content, Origin: "made"})
	}
	for i, u := range updates {
		add(fmt.Sprint(i), u, files[i])
	}
	add(fmt.Sprint(len(updates)), forbid, file)
	add("refused", forbid, wrong)
	return list
}
