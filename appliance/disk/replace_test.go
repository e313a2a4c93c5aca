package disk

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplaceFileLeavesTheOldOrTheNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, text := range []string{"old", "new and longer", "x"} {
		if err := ReplaceFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	// A folder in the file's place can't be replaced: what was written is not left lying around.
	blocked := filepath.Join(dir, "g")
	if err := os.MkdirAll(filepath.Join(blocked, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if ReplaceFile(blocked, []byte("x")) == nil {
		t.Fatal("replaced a folder")
	}
	if _, err := os.Stat(blocked + ".new"); err == nil {
		t.Fatal("the temporary file is left")
	}
}
