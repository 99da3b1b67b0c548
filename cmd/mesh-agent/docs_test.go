package main

import (
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mesh-agent/mesh-agent/internal/config"
)

// These tests hold the text that people read, README.md, docs/*.md and the help of the commands, to what is there.

const top = "../.."

// pages returns the text of README.md and docs/*.md by their paths.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, name := range append(names, filepath.Join(top, "README.md")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	if len(all) < 9 {
		t.Fatalf("only %d pages found", len(all))
	}
	return all
}

// code returns what stands in a page as code: the words between backticks, and the lines of indented and fenced blocks.
func code(page string) (spans, lines []string) {
	fenced := false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			lines = append(lines, strings.TrimSpace(line))
		default:
			for i, span := range strings.Split(line, "`") {
				if i%2 == 1 {
					spans = append(spans, span)
				}
			}
		}
	}
	return spans, lines
}

func TestDocLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	found := 0
	for name, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(page, -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			found++
			target := name
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(name), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link %s: %v", name, m[0], err)
			} else if m[2] != "" && !slices.Contains(anchors(t, target), m[2]) {
				t.Errorf("%s: link %s: there is no such heading", name, m[0])
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d links found", found)
	}
}

// anchors returns the links to the headings of a page, as GitHub makes them.
func anchors(t *testing.T, name string) (out []string) {
	t.Helper()
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	drop := regexp.MustCompile(`[^\pL\pN -]`)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(page), -1) {
		out = append(out, "#"+strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return out
}

// TestDocCommands holds that each command that a page or a help text shows is there, with its flags.
func TestDocCommands(t *testing.T) {
	t.Parallel()
	root := newRootCommand(&app{})
	notCommands := []string{"mesh-agent attestation key 1", "token absent", "key records rolled back"}
	found := 0
	check := func(place, text string) {
		if slices.Contains(notCommands, text) {
			return
		}
		for _, words := range commandLines(root, text) {
			found++
			if err := misunderstood(root, words); err != "" {
				t.Errorf("%s: %q: %s", place, strings.Join(words, " "), err)
			}
		}
	}
	for name, page := range pages(t) {
		spans, lines := code(page)
		for _, text := range append(spans, lines...) {
			check(name, text)
		}
	}
	walk(root, func(c *cobra.Command) {
		for i, quoted := range strings.Split(c.Long, `"`) {
			if i%2 == 1 {
				check(c.CommandPath(), quoted)
			}
		}
		for line := range strings.Lines(c.Example) {
			check(c.CommandPath(), line)
		}
	})
	if found < 150 {
		t.Errorf("only %d commands found", found)
	}
}

func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

// commandLines returns the command lines of this program in a line of text, without its name. They begin with that, or with
// a command; who is said to do it, and other programs, are left out.
func commandLines(root *cobra.Command, text string) (out [][]string) {
	isProgram := func(w string) bool { return w == "mesh-agent" || w == "bin/mesh-agent" }
	var words []string
	end := func() {
		if i := slices.IndexFunc(words, isProgram); i >= 0 {
			words = words[i+1:]
		} else if len(words) > 1 && words[1] == "attest" {
			words = words[1:]
		} else if len(words) < 2 || !slices.ContainsFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == words[0] }) {
			words = nil
		}
		if len(words) > 0 {
			out = append(out, words)
		}
		words = nil
	}
	for w := range strings.FieldsSeq(text) {
		if strings.ContainsAny(w[:1], "|;<>&#") {
			end()
			continue
		}
		words = append(words, strings.Trim(w, "[]{}`',"))
	}
	end()
	return out
}

// misunderstood reports what is wrong with a command line.
func misunderstood(root *cobra.Command, words []string) string {
	c, rest, err := root.Find(words)
	switch {
	case err != nil:
		return err.Error()
	case c.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "--"):
		return "there is no such command"
	}
	for _, w := range rest {
		name, ok := strings.CutPrefix(w, "--")
		if name, _, _ = strings.Cut(name, "="); ok && c.Flag(name) == nil && !slices.Contains([]string{"help", "version"}, name) {
			return "there is no flag --" + name
		}
	}
	return ""
}

// TestDocFlags holds that flags which pages name alone are those of some command.
func TestDocFlags(t *testing.T) {
	t.Parallel()
	known := map[string]bool{"help": true, "version": true}
	walk(newRootCommand(&app{}), func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
		c.PersistentFlags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
	})
	found := 0
	for name, page := range pages(t) {
		spans, _ := code(page)
		for _, span := range spans {
			first, _, _ := strings.Cut(span, " ")
			flag, ok := strings.CutPrefix(first, "--")
			if !ok {
				continue // of another program, or a command, which TestDocCommands looks at
			}
			found++
			if flag, _, _ = strings.Cut(flag, "="); !known[flag] {
				t.Errorf("%s: no command has --%s", name, flag)
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d flags found", found)
	}
}

// TestDocNames holds that targets of make, files, tests and benchmarks are where pages say.
func TestDocNames(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(top, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	functions := testFunctions(t)
	target := regexp.MustCompile(`\bmake ([a-z]+)\b`)
	file := regexp.MustCompile(`^(?:agent|client|cmd|docs|hsm|internal|keyshare|mesh|piv|scripts|softkey|systemd|testdata|token|tpm)/[\w./-]+$`)
	ofState := []string{"tpm/srk", "tpm/pin"}
	benchmark := regexp.MustCompile(`-bench '?(\w+)`)
	test := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	for name, page := range pages(t) {
		spans, lines := code(page)
		for _, text := range append(spans, lines...) {
			for _, m := range target.FindAllStringSubmatch(text, -1) {
				if !strings.Contains(string(makefile), "\n"+m[1]+":") {
					t.Errorf("%s: make has no %s", name, m[1])
				}
			}
			if file.MatchString(text) && !slices.Contains(ofState, text) {
				if _, err := os.Stat(filepath.Join(top, text)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			for _, m := range benchmark.FindAllStringSubmatch(text, -1) {
				if !slices.ContainsFunc(functions, func(f string) bool { return strings.HasPrefix(f, "Benchmark") && strings.Contains(f, m[1]) }) {
					t.Errorf("%s: there is no benchmark %s", name, m[1])
				}
			}
			for _, f := range test.FindAllString(text, -1) {
				if !slices.Contains(functions, f) {
					t.Errorf("%s: there is no %s", name, f)
				}
			}
		}
	}
}

// testFunctions returns the names of all tests, benchmarks and fuzz targets.
func testFunctions(t *testing.T) (names []string) {
	t.Helper()
	for _, f := range moduleFiles(t) {
		for _, d := range f.syntax.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && f.isTest() && d.Recv == nil {
				names = append(names, d.Name.Name)
			}
		}
	}
	return names
}

// TestDocConfiguration holds that the pieces of a configuration which pages and the help show are taken.
func TestDocConfiguration(t *testing.T) {
	t.Parallel()
	texts := maps.Clone(pages(t))
	texts["serve --help"] = newServeCommand(&app{}).Long
	table := regexp.MustCompile(`(?m)^    (?:# ~/\.config/mesh-agent/config\.toml|\[\[?[a-z0-9]+\]?\]|state = .*)\n(?:    .*\n)+`)
	found := 0
	for name, text := range texts {
		for _, block := range table.FindAllString(text, -1) {
			found++
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(path); err != nil {
				t.Errorf("%s: %v\n%s", name, err, block)
			}
		}
	}
	if found < 4 {
		t.Errorf("only %d pieces found", found)
	}
	var documented, known []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|[^|]*\\|[^|]*\\|$").FindAllStringSubmatch(texts[filepath.Join(top, "docs", "configuration.md")], -1) {
		documented = append(documented, m[1])
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[config.Config]()) {
		known = append(known, field.Tag.Get("toml"))
	}
	slices.Sort(documented)
	slices.Sort(known)
	if !slices.Equal(documented, known) {
		t.Errorf("docs/configuration.md has %q, the configuration %q", documented, known)
	}
}

// TestDocStatuses holds that each status of docs/protocol.md has its advice, and each advice its status.
func TestDocStatuses(t *testing.T) {
	t.Parallel()
	page := pages(t)[filepath.Join(top, "docs", "protocol.md")]
	var documented []int
	for _, m := range regexp.MustCompile(`(?m)^\| ([45]\d\d) \|`).FindAllStringSubmatch(page, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		documented = append(documented, n)
	}
	advised := append(slices.Collect(maps.Keys(adviceForStatus)), 400, 499) // which has its own, and which needs none
	slices.Sort(documented)
	slices.Sort(advised)
	if !slices.Equal(documented, advised) {
		t.Errorf("documented %v, advised %v", documented, advised)
	}
}

// TestDocDependencies holds that docs/architecture.md says of each module that is required why it is, and of no other.
func TestDocDependencies(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(filepath.Join(top, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	major := regexp.MustCompile(`/v\d+$`)
	// The direct ones, and the tool, which has a line of its own.
	required := map[string]bool{"honnef.co/go/tools": true}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(file), -1) {
		required[major.ReplaceAllString(m[1], "")] = true
	}
	_, section, _ := strings.Cut(pages(t)[filepath.Join(top, "docs", "architecture.md")], "\n## Dependencies\n")
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile(`(?m)^\| (`+"`"+`[^|]*) \|`).FindAllStringSubmatch(section, -1) {
		for i, name := range strings.Split(row[1], "`") {
			if i%2 == 1 {
				documented[major.ReplaceAllString(name, "")] = true
			}
		}
	}
	if len(required) < 10 || !maps.Equal(documented, required) {
		t.Errorf("documented %q, required %q", slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(required)))
	}
}
