package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// flagWords are the words that flags take, by the flags' names; a usage text that names them all has them too.
var flagWords = map[string][]string{
	"alg":            {"X25519", "X448", "Ed25519", "Ed448", "P256", "P384", "P521", "RSA2048", "RSA3072", "RSA4096"},
	"enc":            {mesh.A256CBC, mesh.A256GCM},
	"format":         {"mesh", "ssh", "pem", "catalog"},
	"generation":     {"g1", "g2"},
	"mode":           {"mesh", "pure", "pss"},
	"pin":            {"none", "once", "always"},
	"release":        {"seed", "key", "plaintext"},
	"rollback-guard": {"tpm"},
	"rsa-padding":    {"oaep-sha1", "oaep-sha256", "oaep-sha384", "oaep-sha512", "pkcs1"},
	"touch":          {"never", "cached", "always"},
	"use":            {"ssh", "sign", "sign-assertion", "decrypt", "agree", "authenticate", "split"},
}

// addCompletions has the shell offer, for what flags and arguments take: words, the running agent's keys and tokens, files where
// the help says file or folder, and nothing else.
func addCompletions(a *app, c *cobra.Command) {
	if c.ValidArgsFunction == nil && c.Flags().Lookup("share-to") == nil { // after which further files may follow
		c.ValidArgsFunction = a.argumentCompletion(c.Use)
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if complete := a.flagCompletion(f); complete != nil {
			_ = c.RegisterFlagCompletionFunc(f.Name, complete) // which is there, and was not registered
		}
	})
	for _, sub := range c.Commands() {
		addCompletions(a, sub)
	}
}

// argumentCompletion is that of a command's arguments, by what its usage calls them; nil for files.
func (a *app) argumentCompletion(use string) cobra.CompletionFunc {
	words := strings.FieldsFunc(use, func(r rune) bool { return strings.ContainsRune(" []{}.", r) })
	switch {
	case slices.Contains(words, "FILE"), slices.Contains(words, "ID"), slices.Contains(words, "CHALLENGE"), slices.Contains(words, "ANSWER"):
		return nil
	case len(words) == 2 && words[1] == "UDF", strings.HasPrefix(use, "export UDF"):
		return first(a.keyWords)
	case len(words) == 2 && words[1] == "NAME":
		return first(a.tokenWords)
	}
	return cobra.NoFileCompletions
}

// first offers the words for a command's first argument only.
func first(words func(context.Context) []cobra.Completion) cobra.CompletionFunc {
	return func(c *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words(c.Context()), cobra.ShellCompDirectiveNoFileComp
	}
}

// flagCompletion is that of a flag's value; nil for files, and for flags without value.
func (a *app) flagCompletion(f *pflag.Flag) cobra.CompletionFunc {
	always := func(words func(context.Context) []cobra.Completion) cobra.CompletionFunc {
		return func(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return words(c.Context()), cobra.ShellCompDirectiveNoFileComp
		}
	}
	_, usage := pflag.UnquoteUsage(f)
	named := func(word string) bool { return strings.Contains(usage, word) }
	words := flagWords[f.Name]
	switch {
	case f.Value.Type() == "bool", takesPath(f):
		return nil
	case len(words) > 0 && !slices.ContainsFunc(words, func(w string) bool { return !named(w) }):
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	case f.Name == "key", f.Name == "unwrap-with":
		return always(a.keyWords)
	case f.Name == "token", f.Name == "seal-to":
		return always(a.tokenWords)
	}
	return cobra.NoFileCompletions
}

// takesPath reports whether a flag's value may be a path, by what its usage calls it.
func takesPath(f *pflag.Flag) bool {
	kind, _ := pflag.UnquoteUsage(f)
	return slices.Contains([]string{"file", "folder", "socket", "device"}, kind)
}

// completionPatience is how long the agent may take to say what there is, while somebody waits for the shell.
const completionPatience = 2 * time.Second

// keyWords are the UDFs of the agent's keys, with what people know them by.
func (a *app) keyWords(ctx context.Context) (words []cobra.Completion) {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	_ = a.with(ctx, func(conn *client.Client) error { // without an agent there are none to offer
		keys, err := conn.KeyList(ctx)
		for _, k := range keys {
			words = append(words, cobra.CompletionWithDesc(k.Udf, oneLine(strings.Join([]string{k.Algorithm, k.Use, k.Token, k.Label}, " "))))
		}
		return err
	})
	return words
}

// tokenWords are the names of the agent's tokens.
func (a *app) tokenWords(ctx context.Context) (words []cobra.Completion) {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	_ = a.with(ctx, func(conn *client.Client) error {
		tokens, err := conn.TokenList(ctx)
		for _, t := range tokens {
			words = append(words, cobra.CompletionWithDesc(t.Name, oneLine(t.Description)))
		}
		return err
	})
	return words
}
