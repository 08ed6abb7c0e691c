package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// refusing are the rooms that refuse bundles, and the stage that is meant where a call
// names none; "" where every call names one.
var refusing = map[string]string{
	"pkg/cms":                  "cms", // but for those files: trusting
	"pkg/fota":                 "policy",
	"pkg/fota/bundle":          "manifest",
	"pkg/fota/bundle/squashfs": "squashfs",
	"pkg/fota/rauc":            "",
	"pkg/fota/sdboot":          "",
	"pkg/fota/slot":            "",
	"internal/installer":       "",
}

// trusting are the files of pkg/cms that say whether a signer may.
var trusting = []string{"trust.go", "crl.go"}

// refusers are the functions by which they do.
var refusers = []string{"refuse", "Refuse", "no", "bad"}

var refusalRow = regexp.MustCompile(`(?m)^\| (\w+) +\| (\w+) +\| (.+) \|$`)

// TestTheManualNamesEveryRefusal holds the table in docs/firmware.md against the code:
// a row for every reason with which a bundle is refused, and no other.
func TestTheManualNamesEveryRefusal(t *testing.T) {
	got, want := map[string]bool{}, refusals(t)
	for _, row := range refusalRow.FindAllStringSubmatch(read(t, "docs/firmware.md"), -1) {
		name := row[1] + " " + row[2]
		if got[name] {
			t.Errorf("docs/firmware.md has two rows of %s", name)
		}
		got[name] = true
	}
	delete(got, "stage code") // the head
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !got[name] {
			t.Errorf("docs/firmware.md has no row of %s", name)
		}
	}
	for name := range got {
		if !want[name] {
			t.Errorf("docs/firmware.md has a row of %s, which is refused nowhere", name)
		}
	}
	if len(want) < 60 {
		t.Errorf("found %d reasons in the code: the search has lost its way", len(want))
	}
}

// refusals finds every stage and code in the code, as "policy downgrade".
func refusals(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for room, stage := range refusing {
		files, err := filepath.Glob(filepath.Join(root, room, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("found %d files in %s: %v", len(files), room, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			stage := stage
			if room == "pkg/cms" && slices.Contains(trusting, filepath.Base(file)) {
				stage = "chain"
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					if slices.Contains(refusers, lastName(n.Fun)) {
						note(found, stage, n.Args)
					}
				case *ast.CompositeLit:
					if lastName(n.Type) == "Refusal" {
						note(found, stage, n.Elts)
					}
				case *ast.FuncDecl:
					if n.Name.Name == "reason" { // of pkg/cms: the codes of a chain
						ast.Inspect(n.Body, func(n ast.Node) bool {
							if r, ok := n.(*ast.ReturnStmt); ok {
								note(found, stage, r.Results)
							}
							return true
						})
					}
				}
				return true
			})
		}
	}
	return found
}

// note notes a refusal, by its arguments: a stage, if it is said, and a code.
func note(found map[string]bool, stage string, args []ast.Expr) {
	if len(args) > 1 {
		if name, ok := strings.CutPrefix(lastName(args[0]), "Stage"); ok {
			stage, args = strings.ToLower(name), args[1:]
		}
	}
	if len(args) == 0 || stage == "" {
		return
	}
	if l, ok := args[0].(*ast.BasicLit); ok && l.Kind == token.STRING {
		if code, err := strconv.Unquote(l.Value); err == nil {
			found[stage+" "+code] = true
		}
	}
}

// lastName is "Refuse" of fota.Refuse.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
