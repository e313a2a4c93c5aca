package lab

import (
	"bytes"
	"os"
	"testing"

	"guardhouse/images/keys"
)

func TestFirmwareVariablesAreReplacedAndNothingElseIsTouched(t *testing.T) {
	store, err := os.ReadFile(ovmfVars)
	if err != nil {
		t.Fatalf("%v (Debian package ovmf)", err)
	}
	first := []keys.Variable{{Name: "PK", GUID: keys.GlobalVariable, Data: []byte("first")}, {Name: "db", GUID: keys.SecurityDatabase, Data: []byte("of the db")}}
	if err := enrol(store, first, true); err != nil {
		t.Fatal(err)
	}
	if err := setVariables(store, []keys.Variable{{Name: "BootNext", GUID: keys.GlobalVariable, Data: []byte{1, 0}}}, attrBoot); err != nil {
		t.Fatal(err)
	}
	size := len(store)
	if err := enrol(store, []keys.Variable{{Name: "PK", GUID: keys.GlobalVariable, Data: []byte("second")}}, false); err != nil {
		t.Fatal(err)
	}
	live := map[string]string{}
	for at := firstVar; store[at] == 0xaa && store[at+1] == 0x55; {
		h := store[at:]
		n, d := int(h[36])+int(h[37])<<8, int(h[40])+int(h[41])<<8
		if h[2] == varAdded {
			name := string(bytes.ReplaceAll(h[varHeader:varHeader+n], []byte{0}, nil))
			if _, twice := live[name]; twice {
				t.Errorf("%s is there twice", name)
			}
			live[name] = string(h[varHeader+n : varHeader+n+d])
		}
		at = (at + varHeader + n + d + 3) &^ 3
	}
	if live["PK"] != "second" || live["db"] != "of the db" || live["SecureBootEnable"] != "\x00" || live["BootNext"] != "\x01\x00" {
		t.Errorf("%q", live)
	}
	if len(store) != size {
		t.Error("the store grew")
	}
	for _, broken := range [][]byte{nil, make([]byte, 1<<16), store[:storeStart+100]} {
		if enrol(broken, first, true) == nil {
			t.Errorf("wrote into %d bytes that are no store", len(broken))
		}
	}
	if enrol(store, []keys.Variable{{Name: "db", GUID: keys.SecurityDatabase, Data: make([]byte, len(store))}}, true) == nil {
		t.Error("wrote beyond the store's end")
	}
}
