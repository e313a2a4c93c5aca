// Package appliance_test holds the import ladder of the whole module and the other rules about which code may stand where.
// A package imports lower levels freely and, at its own level, only what sameLevel names.
package appliance_test

import (
	"fmt"
	"go/ast"
	"go/types"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

const module = "guardhouse/"

// level is the ladder. A package below a listed one (appliance/hsm/token) belongs to it.
var level = map[string]int{
	"policy": 0, "text": 0, "hgsa": 0, "kps": 0, "evidence": 0, "appraise": 0, "health": 0,
	"tpm": 1, "quote": 1, "hsm": 1, "clock": 1, "disk": 1, "network": 1, "intake": 1,
	"rpc": 2, "sandbox": 2, "supervise": 2, "audit": 2, "ledger": 2, "cluster": 2, "update": 2, "volume": 2,
	"attest": 3, "protect": 3, "forward": 3,
}

// sameLevel names the arrows allowed inside a level; there is no cycle in them.
var sameLevel = map[string][]string{
	"hgsa": {"policy", "text"}, "kps": {"policy", "text"}, "evidence": {"policy", "text"}, "appraise": {"policy", "evidence"}, "health": {"policy"},
	"tpm":       {"disk"},
	"quote":     {"tpm"}, // the cap and the form of keys; it opens no TPM
	"sandbox":   {"rpc"},
	"supervise": {"rpc", "sandbox"},
	"cluster":   {"rpc"}, // what is said of a peer, and how long this boot has lasted; it calls nobody
	"ledger":    {"rpc", "audit", "cluster"},
}

// outside says which folders the parts outside appliance may import besides appliance's levels; "appliance/x" forbids with a minus.
var forbidden = map[string][]string{
	"appliance": {"cmd", "console", "images", "board", "initramfs"},
	"console":   {"cmd", "images", "board", "initramfs", "appliance/ledger", "appliance/audit", "appliance/tpm", "appliance/hsm", "appliance/attest", "appliance/protect"},
	"images":    {"cmd", "console"},
	"initramfs": {"cmd", "console", "images"},
	"board":     {"cmd", "console"},
	"cmd":       {},
}

// cgo lists the only packages that may be cgo or import a cgo library; everything that reaches them must be one of cgoUsers.
var (
	cgo      = []string{"appliance/hsm/token"}
	cgoUsers = []string{"appliance/hsm/token", "cmd/hsm"}
	cgoLibs  = []string{"C", "github.com/ThalesGroup/crypto11", "github.com/miekg/pkcs11"}
)

func load(t *testing.T, mode packages.LoadMode) []*packages.Package {
	t.Helper()
	pkgs, err := packages.Load(&packages.Config{Mode: mode, Dir: ".."}, "./...")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pkgs {
		for _, e := range p.Errors {
			t.Error(e) // a package that does not compile hides its imports
		}
	}
	if len(pkgs) < 5 {
		t.Fatalf("only %d packages found", len(pkgs))
	}
	return pkgs
}

// noun is the second folder of an appliance package: "hsm" for appliance/hsm/token.
func noun(path string) string {
	rest, ok := strings.CutPrefix(path, "appliance/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

func TestImportLadder(t *testing.T) {
	for _, p := range load(t, packages.NeedName|packages.NeedImports) {
		path := strings.TrimPrefix(p.PkgPath, module)
		top, _, _ := strings.Cut(path, "/")
		if _, ok := forbidden[top]; !ok {
			t.Errorf("%s: %q is not one of the project's top folders", path, top)
		}
		if n := noun(path); n != "" {
			if _, ok := level[n]; !ok {
				t.Errorf("%s has no level: add it to the ladder in this test on purpose", path)
			}
		}
		for imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if err := arrow(path, to); err != nil {
				t.Error(err)
			}
		}
	}
}

// arrow judges one import from one package of ours to another.
func arrow(from, to string) error {
	top, _, _ := strings.Cut(from, "/")
	for _, f := range forbidden[top] {
		if within(to, f) {
			return fmt.Errorf("%s imports %s: nothing in %s may import %s", from, to, top, f)
		}
	}
	a, b := noun(from), noun(to)
	if a == "" || b == "" || a == b {
		return nil
	}
	if level[b] > level[a] {
		return fmt.Errorf("%s (level %d) imports %s (level %d)", from, level[a], to, level[b])
	}
	if level[b] == level[a] && !slices.Contains(sameLevel[a], b) {
		return fmt.Errorf("%s imports %s of its own level", from, to)
	}
	return nil
}

func TestTheLadderItselfForbids(t *testing.T) {
	for _, bad := range [][2]string{
		{"appliance/attest", "appliance/protect"}, {"appliance/protect", "appliance/attest"}, {"appliance/policy", "appliance/rpc"},
		{"appliance/ledger", "console/verb"}, {"console/verb", "appliance/ledger"}, {"appliance/hgsa", "appliance/kps"}, {"appliance/rpc", "appliance/ledger"},
	} {
		if arrow(bad[0], bad[1]) == nil {
			t.Errorf("%s -> %s is allowed", bad[0], bad[1])
		}
	}
}

func TestLevelZeroTouchesNothing(t *testing.T) {
	for _, p := range load(t, packages.NeedName|packages.NeedImports) {
		n := noun(strings.TrimPrefix(p.PkgPath, module))
		if l, ok := level[n]; !ok || l != 0 {
			continue
		}
		for imp := range p.Imports {
			if slices.Contains([]string{"os", "net", "net/http", "os/exec", "syscall", "golang.org/x/sys/unix", "log"}, imp) {
				t.Errorf("%s imports %s: pure packages touch no file, socket or clock", p.PkgPath, imp)
			}
		}
	}
}

func TestOnlyTheHSMIsCgo(t *testing.T) {
	for _, p := range load(t, packages.NeedName|packages.NeedImports) {
		path := strings.TrimPrefix(p.PkgPath, module)
		for imp := range p.Imports {
			if slices.Contains(cgoLibs, imp) && !slices.ContainsFunc(cgo, func(f string) bool { return within(path, f) }) {
				t.Errorf("%s imports %s", path, imp)
			}
		}
	}
	// Which packages may reach the ones that import cgo at all: computed, so that a helper package can't smuggle it.
	pkgs := load(t, packages.NeedName|packages.NeedImports|packages.NeedDeps)
	var reaches func(p *packages.Package, seen map[string]bool) bool
	reaches = func(p *packages.Package, seen map[string]bool) bool {
		if seen[p.PkgPath] {
			return false
		}
		seen[p.PkgPath] = true
		for imp, dep := range p.Imports {
			if slices.Contains(cgoLibs[1:], imp) || (strings.HasPrefix(imp, module) && reaches(dep, seen)) {
				return true
			}
		}
		return false
	}
	for _, p := range pkgs {
		path := strings.TrimPrefix(p.PkgPath, module)
		if reaches(p, map[string]bool{}) && !slices.ContainsFunc(cgoUsers, func(f string) bool { return within(path, f) }) {
			t.Errorf("%s reaches a cgo library", path)
		}
	}
}

// TestOnlyTheClockMakesTrustedTime finds every place that could make a trusted time out of anything else: a literal with content, an
// assignment to a field, a conversion, or a decoder.
func TestOnlyTheClockMakesTrustedTime(t *testing.T) {
	const name = module + "appliance/policy.TrustedTime"
	isTT := func(ty types.Type) bool {
		if ptr, ok := ty.(*types.Pointer); ok {
			ty = ptr.Elem()
		}
		return ty != nil && types.Unalias(ty).String() == name
	}
	saw := false
	for _, p := range load(t, packages.NeedName|packages.NeedSyntax|packages.NeedTypes|packages.NeedTypesInfo|packages.NeedImports|packages.NeedDeps|packages.NeedFiles) {
		path := strings.TrimPrefix(p.PkgPath, module)
		maker := path == "appliance/clock"
		bad := func(n ast.Node, what string) {
			if maker {
				saw = true
				return
			}
			t.Errorf("%s: %s", p.Fset.Position(n.Pos()), what)
		}
		for _, f := range p.Syntax {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if isTT(p.TypesInfo.TypeOf(n)) && len(n.Elts) > 0 {
						bad(n, "makes a TrustedTime")
					}
				case *ast.AssignStmt:
					for _, l := range n.Lhs {
						if s, ok := l.(*ast.SelectorExpr); ok && isTT(p.TypesInfo.TypeOf(s.X)) {
							bad(n, "changes a TrustedTime")
						}
					}
				case *ast.CallExpr:
					if tv, ok := p.TypesInfo.Types[n.Fun]; ok && tv.IsType() && isTT(tv.Type) {
						bad(n, "converts to TrustedTime")
					}
					fun := types.ExprString(n.Fun)
					if strings.Contains(fun, "Unmarshal") || strings.HasSuffix(fun, ".Decode") {
						for _, a := range n.Args {
							if isTT(p.TypesInfo.TypeOf(a)) {
								bad(n, "decodes a TrustedTime")
							}
						}
					}
				case *ast.IndexListExpr:
					for _, x := range n.Indices {
						if isTT(p.TypesInfo.TypeOf(x)) && path != "appliance/rpc" {
							bad(n, "sends or takes a TrustedTime by rpc")
						}
					}
				}
				return true
			})
		}
	}
	if !saw {
		t.Error("not even the clock's own construction was found: this check sees nothing")
	}
}
