package mesh_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProtocolTables holds that the tables of messages in docs/protocol.md have the members that the messages have: of
// requests all, and which may be absent; of responses all names.
func TestProtocolTables(t *testing.T) {
	t.Parallel()
	types := messageTypes(t)
	page, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\w+)Request \|([^|]*)\|([^|]*)\|$`).FindAllStringSubmatch(string(page), -1)
	if len(rows) < 30 {
		t.Fatalf("only %d rows found", len(rows))
	}
	for _, row := range rows {
		name, request, response := row[1], strings.TrimSpace(row[2]), row[3]
		want, ok := types[name+"Request"]
		if !ok {
			t.Errorf("%sRequest: there is no such message", name)
			continue
		}
		if got := documented(request, types); !maps.Equal(got, want) {
			t.Errorf("%sRequest: documented %v, want %v", name, got, want)
		}
		for member := range types[name+"Response"] {
			if !strings.Contains(response, "as ") && !strings.Contains(response, "`"+member+"`") {
				t.Errorf("%sResponse: %s is not documented", name, member)
			}
		}
	}
}

// documented returns the members in a cell such as "home, `Use`, `Label`?: a text", and which of them may be absent. What
// a member holds stands after a colon; where that is members again, it is the last one.
func documented(cell string, types map[string]map[string]bool) map[string]bool {
	members := make(map[string]bool)
	for _, part := range strings.Split(cell, ", ") {
		name, _, _ := strings.Cut(part, ":")
		if part == "home" {
			maps.Copy(members, types["Home"])
		} else if m := regexp.MustCompile("^`(\\w+)`(\\??)$").FindStringSubmatch(name); m != nil {
			members[m[1]] = m[2] == "?"
		}
		if strings.Contains(part, ": `") {
			break
		}
	}
	return members
}

// messageTypes returns the members of the structures of this package by name, and whether each may be absent.
func messageTypes(t *testing.T) map[string]map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	structs := make(map[string]*ast.StructType)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					structs[spec.Name.Name] = s
				}
			}
			return true
		})
	}
	types := make(map[string]map[string]bool)
	for name, s := range structs {
		types[name] = make(map[string]bool)
		addMembers(types[name], s, structs)
	}
	return types
}

func addMembers(members map[string]bool, s *ast.StructType, structs map[string]*ast.StructType) {
	for _, field := range s.Fields.List {
		for _, name := range field.Names {
			members[name.Name] = field.Tag != nil && strings.Contains(field.Tag.Value, "omitzero")
		}
		embedded, ok := field.Type.(*ast.Ident)
		if ok && len(field.Names) == 0 && embedded.Name != "Reply" {
			addMembers(members, structs[embedded.Name], structs)
		}
	}
}
