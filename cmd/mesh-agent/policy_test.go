package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mesh-agent/mesh-agent"

// What the packages may import beside the standard library; a pattern that ends in /...
// covers what is below. A folder takes the rule of the longest prefix here. Tests may
// import more, but a test of a rule's package is bound to the never list too.
var importRules = map[string]struct{ may, never []string }{
	"token":                {},
	"token/tokentest":      {may: []string{module + "/token", module + "/keyshare", module + "/internal/rsapad"}},
	"keyshare":             {may: []string{"github.com/cloudflare/circl/...", "filippo.io/edwards25519/...", "filippo.io/nistec/...", "filippo.io/bigmod/..."}},
	"mesh":                 {may: []string{module + "/token", module + "/keyshare", module + "/internal/strictjson"}},
	"internal":             {may: []string{"golang.org/x/sys/..."}},
	"internal/attest":      {may: []string{module + "/token", module + "/mesh", module + "/internal/strictjson", "github.com/google/go-tpm/tpm2"}},
	"internal/strictjson":  {may: []string{"github.com/go-json-experiment/json/..."}},
	"internal/policy":      {may: []string{module + "/token"}},
	"internal/rsapad":      {may: []string{module + "/token", "filippo.io/bigmod"}},
	"internal/store":       {may: []string{module + "/internal/durable", module + "/internal/strictjson", "golang.org/x/sys/..."}},
	"internal/devicestate": {may: []string{module + "/internal/durable", module + "/internal/strictjson", module + "/mesh", module + "/mesh/device"}},
	"internal/config":      {may: []string{"github.com/BurntSushi/toml"}},
	"internal/keyfile":     {may: []string{module + "/token", module + "/keyshare", module + "/mesh", module + "/internal/strictjson", module + "/internal/secret", "golang.org/x/crypto/..."}},
	"internal/keyring":     {may: []string{module + "/token", module + "/keyshare", module + "/mesh", module + "/internal/store", module + "/internal/secret"}},
	"softkey":              {may: []string{module + "/token", module + "/keyshare", module + "/internal/rsapad", module + "/internal/secret", module + "/internal/durable", "filippo.io/age/...", "golang.org/x/crypto/..."}},
	"tpm":                  {may: []string{module + "/token", module + "/keyshare", module + "/internal/rsapad", module + "/internal/secret", module + "/internal/durable", "github.com/google/go-tpm/..."}},
	"piv":                  {may: []string{module + "/token", module + "/keyshare", module + "/internal/rsapad", module + "/internal/secret"}},
	"hsm":                  {may: []string{module + "/token", module + "/keyshare", module + "/internal/rsapad", module + "/internal/secret", "github.com/miekg/pkcs11", "golang.org/x/sys/...", "C"}},
	"agent": {
		may: []string{module + "/token", module + "/keyshare", module + "/mesh", module + "/internal/attest", module + "/mesh/device", module + "/internal/devicestate", module + "/internal/keyfile", module + "/internal/keyring",
			module + "/internal/peercred", module + "/internal/policy", module + "/internal/prompt", module + "/internal/secret", module + "/internal/strictjson", "github.com/go-json-experiment/json/...", "golang.org/x/crypto/ssh/...", "golang.org/x/sys/..."},
		never: []string{module + "/softkey/...", module + "/tpm/...", module + "/piv/...", module + "/hsm/...", module + "/cmd/..."},
	},
	"client": {
		may:   []string{module + "/token", module + "/keyshare", module + "/mesh", module + "/internal/strictjson", "github.com/go-json-experiment/json/...", "golang.org/x/crypto/ssh/..."},
		never: []string{module + "/softkey/...", module + "/tpm/...", module + "/piv/...", module + "/hsm/..."},
	},
	"cmd": {may: []string{"..."}},
}

// goFile is a parsed file and the folder of its package, relative to the module.
type goFile struct {
	folder, name string
	syntax       *ast.File
}

func (f goFile) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

// moduleFiles parses every Go file of the module in this process: a child go list would
// escape the test cache.
func moduleFiles(t *testing.T) []goFile {
	t.Helper()
	const root = "../.."
	var files []goFile
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if hidden := strings.HasPrefix(d.Name(), ".") && name != root; hidden || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ParseComments)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(name))
		files = append(files, goFile{filepath.ToSlash(folder), filepath.Base(name), syntax})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 30 {
		t.Fatalf("only %d Go files found", len(files))
	}
	return files
}

func TestImportPolicy(t *testing.T) {
	t.Parallel()
	for _, f := range moduleFiles(t) {
		ruled, rule, ok := ruleFor(f.folder)
		if !ok {
			t.Errorf("%s: no import rule for this folder", f.folder)
			continue
		}
		for _, spec := range f.syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case isStandard(imported) || ruled != "internal" && matches([]string{module + "/" + ruled + "/..."}, imported):
			case matches(rule.never, imported):
				t.Errorf("%s/%s imports %s, which is never allowed there", f.folder, f.name, imported)
			case !f.isTest() && !isTestHelper(f.folder) && !matches(rule.may, imported):
				t.Errorf("%s/%s imports %s, which its rule does not list", f.folder, f.name, imported)
			}
			if imported == "C" && !strings.HasSuffix(f.name, "_cgo.go") {
				t.Errorf("%s/%s uses cgo; only *_cgo.go may", f.folder, f.name)
			}
		}
	}
}

// TestBackendsApart holds that backends never import each other, in tests neither.
func TestBackendsApart(t *testing.T) {
	t.Parallel()
	backends := []string{"softkey", "tpm", "piv", "hsm"}
	for _, f := range moduleFiles(t) {
		own, _, _ := strings.Cut(f.folder, "/")
		if !slices.Contains(backends, own) {
			continue
		}
		for _, spec := range f.syntax.Imports {
			for _, other := range backends {
				imported, _ := strconv.Unquote(spec.Path.Value)
				if other != own && matches([]string{module + "/" + other + "/..."}, imported) {
					t.Errorf("backend %s/%s imports backend %s", f.folder, f.name, other)
				}
			}
		}
	}
}

// ruleFor returns the rule of the longest prefix of folder, and that prefix. What is below
// one prefix may import each other, except the packages that are only internal.
func ruleFor(folder string) (prefix string, rule struct{ may, never []string }, ok bool) {
	for ; folder != "."; folder = path.Dir(folder) {
		if rule, ok = importRules[folder]; ok {
			return folder, rule, true
		}
	}
	return "", rule, false
}

func isStandard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".") && imported != "C"
}

// isTestHelper reports whether a package only serves tests, by the name that the
// standard library gives such: footest.
func isTestHelper(folder string) bool {
	return strings.HasSuffix(folder, "test") && folder != "token/tokentest"
}

func matches(patterns []string, imported string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, below := strings.CutSuffix(p, "/...")
		return p == "..." || imported == prefix || (below && strings.HasPrefix(imported, prefix+"/"))
	})
}

// TestDocumented holds that every package and every exported name has a doc comment.
func TestDocumented(t *testing.T) {
	t.Parallel()
	packages := make(map[string]bool)
	for _, f := range moduleFiles(t) {
		if f.isTest() {
			continue
		}
		packages[f.folder] = packages[f.folder] || f.syntax.Doc != nil
		for _, name := range undocumented(f.syntax) {
			t.Errorf("%s/%s: %s has no doc comment", f.folder, f.name, name)
		}
	}
	for folder, documented := range packages {
		if !documented {
			t.Errorf("%s: the package has no comment", folder)
		}
	}
}

// undocumented lists the exported names of a file that have no comment: functions,
// methods of exported types, types, constants, variables. A comment on a group, or at
// the end of a line, serves its members.
func undocumented(file *ast.File) (names []string) {
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				names = append(names, undocumentedSpec(d, spec)...)
			}
		}
	}
	return names
}

func undocumentedSpec(d *ast.GenDecl, spec ast.Spec) (names []string) {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && d.Doc == nil && s.Comment == nil {
			names = append(names, s.Name.Name)
		}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() && s.Doc == nil && d.Doc == nil && s.Comment == nil {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// exportedReceiver reports whether a function is no method, or one of an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	exported := true
	ast.Inspect(d.Recv.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			exported = id.IsExported()
			return false
		}
		return true
	})
	return exported
}
