package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryChapterUsesTheHSMThatWasAskedFor: a chapter that opens its site itself forgets what make demo HSM= said, and nobody sees it.
func TestEveryChapterUsesTheHSMThatWasAskedFor(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	opened, chaptersThatOpen := 0, 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			from, _ := call.X.(*ast.Ident)
			switch {
			case from != nil && from.Name == "site" && call.Sel.Name == "Open":
				opened++
				if name != "main.go" {
					t.Errorf("%s opens a site itself: use story.open", name)
				}
			case from != nil && from.Name == "st" && call.Sel.Name == "open":
				chaptersThatOpen++
			}
			return true
		})
	}
	if opened != 1 || chaptersThatOpen != len(chapters) {
		t.Errorf("sites are opened in %d places, by %d of %d chapters", opened, chaptersThatOpen, len(chapters))
	}
}
