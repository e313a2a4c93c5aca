package kernel

import (
	"slices"
	"strings"
	"testing"
)

const (
	testList  = "/m/virtio.ko\n/m/bonding.ko max_bonds=0\n/m/dca.ko\n/m/igb.ko\n/m/ahci.ko\n"
	testMatch = "/m/dca.ko pci:v00008086d00001533sv*sd*bc*sc*i*\n/m/igb.ko pci:v00008086d00001533sv*sd*bc*sc*i*\n/m/ahci.ko pci:v*d*sv*sd*bc01sc06i01*\n"
)

func TestLoadsOnlyDriversOfPresentDevices(t *testing.T) {
	for name, c := range map[string]struct {
		aliases []string
		want    string
	}{
		"nothing":  {nil, "virtio bonding"},
		"network":  {[]string{"pci:v00008086d00001533sv00001AF4sd00001100bc02sc00i00\n"}, "virtio bonding dca igb"},
		"disk":     {[]string{"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"}, "virtio bonding ahci"},
		"stranger": {[]string{"pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00"}, "virtio bonding"},
	} {
		got, err := Select(testList, testMatch, c.aliases)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range got {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(l.Path, "/m/"), ".ko"))
		}
		if s := strings.Join(names, " "); s != c.want {
			t.Errorf("%s: got %q want %q", name, s, c.want)
		}
	}
}

func TestParametersReachTheLoader(t *testing.T) {
	got, err := Select(testList, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, Load{"/m/bonding.ko", "max_bonds=0"}) || len(got) != 5 {
		t.Fatalf("got %v", got)
	}
}

func TestRefusesBrokenLists(t *testing.T) {
	if _, err := Select("relative.ko\n", "", nil); err == nil {
		t.Error("relative path accepted")
	}
	for _, m := range []string{"/m/a.ko\n", "/m/a.ko pci:[\n"} {
		if _, err := Select(testList, m, nil); err == nil {
			t.Errorf("%q accepted", m)
		}
	}
}

func TestEveryWordAndModuleHasAReason(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range CommandLine {
		if w.Reason == "" || w.Text == "" || strings.ContainsAny(w.Text, " \t\n\"") || seen[w.Text] {
			t.Errorf("word %q", w.Text)
		}
		seen[w.Text] = true
	}
	for _, m := range Modules {
		if m.Reason == "" || seen[m.Name] {
			t.Errorf("module %q", m.Name)
		}
		seen[m.Name] = true
	}
}
