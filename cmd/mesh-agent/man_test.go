package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra/doc"
)

var update = flag.Bool("update", false, "write the man pages anew")

const manFolder = "../../docs/man"

// TestManPages holds that docs/man is what the commands say. `make man` writes it.
func TestManPages(t *testing.T) {
	t.Parallel()
	fresh := t.TempDir()
	root := newRootCommand(&app{})
	root.DisableAutoGenTag = true
	date := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) // fixed, so that pages change with commands only
	header := &doc.GenManHeader{Section: "1", Source: "mesh-agent", Manual: "mesh-agent", Date: &date}
	if err := doc.GenManTree(root, header, fresh); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.RemoveAll(manFolder); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(manFolder, os.DirFS(fresh)); err != nil {
			t.Fatal(err)
		}
	}
	want, got := readFolder(t, fresh), readFolder(t, manFolder)
	if len(want) < 20 {
		t.Errorf("only %d pages generated", len(want))
	}
	for name, text := range want {
		if !bytes.Equal(got[name], text) {
			t.Errorf("%s is not current; run `make man`", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s belongs to no command; run `make man`", name)
		}
	}
}

func readFolder(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestNearCommands holds that a typing error finds the command that was meant, and that nothing else is guessed.
func TestNearCommands(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"stauts":       "hint: perhaps `mesh-agent status`; `mesh-agent --help` lists all\n",
		"key lst":      "hint: perhaps `mesh-agent key list`; `mesh-agent key --help` lists all\n",
		"help key lst": "hint: perhaps `mesh-agent key list`; `mesh-agent key --help` lists all\n",
		"key nonsense": "hint: `mesh-agent key --help` shows how\n",
	} {
		var stderr bytes.Buffer
		code := run(context.Background(), strings.Fields(args), world{strings.NewReader(""), io.Discard, &stderr, func(string) string { return "" }})
		if code != 2 || !strings.HasSuffix(stderr.String(), want) {
			t.Errorf("%s: exit status %d, %swant %s", args, code, stderr.String(), want)
		}
	}
}

// TestUsageErrors holds that what is not understood is said with a hint and exit status 2.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args string
		want string
	}{
		{"", "read command line: subcommand needed"},
		{"nonsense", `read command line: unknown command "nonsense"`},
		{"key", "key: subcommand needed"},
		{"key nonsense", `key: unknown command "nonsense"`},
		{"key import --nonsense", "key import: unknown flag: --nonsense"},
		{"key import --token soft", "key import: --use is required"},
		{"key generate --token soft --alg X448 --use agree extra", "key generate: "},
		{"key public --format der X", `key public: --format "der" is none of mesh, ssh, pem`},
		{"key list extra", "key list: "},
		{"key list --generation", "key list: unknown flag"},
		{"key import --token soft --use sign --generation g3", "key import: "},
		{"serve --software-keys --insecure-software-keys", "serve: "},
		{"sign", "sign: --key is required"},
		{"agree --key X", "agree: --peer is required"},
		{"encrypt", "encrypt: --to is required"},
		{"share combine", "share combine: requires at least 1 arg"},
		{"token unlock", "token unlock: accepts 1 arg"},
		{"attest", "attest: subcommand needed"},
		{"attest challenge id --ca dir", "attest challenge: --out is required"},
		{"attest challenge id --out c --ca dir --accept-unverified-ek", "attest challenge: --ca and --accept-unverified-ek exclude"},
		{"attest challenge --out c --ca dir", "attest challenge: --ca and --accept-unverified-ek are about ID"},
		{"attest challenge --out c --valid 0s", "attest challenge: --valid is not positive"},
		{"attest answer c", "attest answer: --key is required"},
		{"attest verify a", "attest verify: --challenge is required"},
		{"operate a b", "operate: accepts at most 1 arg"},
		{"help nonsense", `help: unknown command "nonsense"`},
		{"help key nonsense", `help: unknown command "nonsense"`},
		{"completion", "completion: subcommand needed"},
		{"completion nonsense", `completion: unknown command "nonsense"`},
		{"completion bash extra", "completion bash: "},
		{"status --socket=", "status: --socket is empty"},
		{"serve --state=", "serve: --state is empty"},
		{"sign --key=", "sign: --key is empty"},
		{"verify --signer=a --signer=", "verify: --signer is empty"},
		{"verify --body --json", "verify: --body and --json exclude"},
		{"key public --format pem --json X", "key public: --json and --format pem exclude"},
		{"key generate --token soft --alg P256 --use ssh --label \xff", "key generate: --label is not UTF-8"},
		{"key show \xff", "key show: an argument is not UTF-8"},
		{"decrypt --json", "decrypt: --json: what was encrypted"},
		{"key export --json X", "key export: --json and --format tss2 exclude"},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			w := world{strings.NewReader(""), &stdout, &stderr, func(string) string { return "" }}
			code := run(context.Background(), strings.Fields(test.args), w)
			if code != 2 || stdout.Len() != 0 {
				t.Errorf("exit status %d, standard output %q; want 2 and nothing", code, stdout.String())
			}
			if got := stderr.String(); !strings.HasPrefix(got, "mesh-agent: "+test.want) || !strings.Contains(got, "\nhint: ") {
				t.Errorf("standard error:\n%swant it to start with %q and to have a hint", got, test.want)
			}
		})
	}
}
