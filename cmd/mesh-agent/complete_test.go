package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/token"
)

// TestComplete has the shell ask what may come next. A directive of 4 keeps it from offering files, 0 has it offer them.
func TestComplete(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"key generate --use ":             "ssh sign sign-assertion decrypt agree authenticate split :4",
		"key generate --pin ":             "none once always :4",
		"key generate --label ":           ":4",
		"device request --pin ":           ":0",
		"key public --format ":            "mesh ssh pem catalog :4",
		"key export --format ":            ":4",
		"sign --mode ":                    "mesh pure pss :4",
		"sign --to ":                      ":0",
		"sign --key ":                     ":4", // there is no agent
		"token unlock ":                   ":4",
		"sign ":                           ":0",
		"key generate --share-to a.json ": ":0",
		"attest challenge ":               ":0",
		"key list ":                       ":4",
		"serve --rollback-guard ":         "tpm :4",
		"serve --tpm ":                    ":0",
		"decrypt --rsa-padding ":          "oaep-sha1 oaep-sha256 oaep-sha384 oaep-sha512 pkcs1 :4",
		"encrypt --enc ":                  "A256CBC A256GCM :4",
		"account init --pin ":             "none once always :4",
		"device verify --account ":        ":4",
	} {
		var out strings.Builder
		code := run(context.Background(), append([]string{"__complete"}, strings.Split(line, " ")...),
			world{strings.NewReader(""), &out, io.Discard, func(string) string { return "" }})
		if got := strings.Join(strings.Fields(out.String()), " "); code != 0 || got != want {
			t.Errorf("%q: exit status %d, %q, want %q", line, code, got, want)
		}
	}
}

// TestFlagWords holds that the words that are offered are those of the help, of which there is one for each list.
func TestFlagWords(t *testing.T) {
	t.Parallel()
	found := make(map[string]bool)
	walk(newRootCommand(&app{}), func(c *cobra.Command) {
		for name, words := range flagWords {
			if f := c.Flag(name); f != nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f.Usage, w) }) {
				found[name] = true
			}
		}
	})
	for name := range flagWords {
		if !found[name] {
			t.Errorf("no command's help has the words of --%s", name)
		}
	}
	var algorithms []string
	for _, a := range token.Algorithms() {
		algorithms = append(algorithms, string(a))
	}
	if !slices.Equal(flagWords["alg"], algorithms) {
		t.Errorf("algorithms are %q, want %q", flagWords["alg"], algorithms)
	}
}
