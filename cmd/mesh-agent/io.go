package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// Limits of what is read, in octets.
const (
	maxSmall    = 256 << 10 // a key, a request, a PIN
	maxDocument = 256 << 20 // a file to encrypt, sign or decrypt; all of it is in memory
)

// read returns the whole of a file, or of standard input if name is "-" or empty.
func (a *app) read(name string, limit int64) ([]byte, error) {
	in := a.stdin
	if name != "" && name != "-" {
		f, err := os.Open(name)
		switch {
		case err != nil && isSecret(name):
			return nil, hint(errors.New("there is a secret in the place of a file's name"), "give it in a file or by standard input: an argument can be seen by others")
		case err != nil:
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, err // which names the file
	}
	if int64(len(data)) > limit {
		clear(data)
		return nil, fmt.Errorf("read %s: longer than %d octets", title(name), limit)
	}
	return data, nil
}

// isSecret reports whether a word is a seed, a share, a PIN or another secret that the Mesh writes as text.
func isSecret(word string) bool {
	octets, err := mesh.ParseUDF(word)
	return err == nil && len(octets) >= 8 && slices.Contains([]mesh.UDFType{
		mesh.UDFSeed, mesh.UDFShare, mesh.UDFAuthenticator, mesh.UDFAuthenticatorSHA3, mesh.UDFEncryption, mesh.UDFEncryptionSign,
	}, mesh.UDFType(octets[0]))
}

// optional returns the only argument, or "" for standard input.
func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// printJSON writes v for people who pipe it to other programs.
func (a *app) printJSON(v any) error {
	out, err := strictjson.MarshalIndent(v)
	if err != nil {
		return fmt.Errorf("encode JSON: %w", err)
	}
	return a.print(append(out, '\n'))
}

func (a *app) print(out []byte) error {
	_, err := a.stdout.Write(out)
	return err
}

// printTable writes rows as aligned columns, without what a terminal could obey: a name may be
// what a file of somebody else's claims.
func (a *app) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, oneLine(cell))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// say writes a line of talk, as printTable does.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.stderr, oneLine(fmt.Sprintf(format, args...)))
}

// secret asks for a secret on the terminal without echo, or takes the first line of
// standard input where that is no terminal. The caller wipes it.
func (a *app) secret(ctx context.Context, prompt string) ([]byte, error) {
	if tty, ok := a.terminal(); ok {
		return a.ask(ctx, tty, prompt)
	}
	data, err := a.read("-", maxSmall)
	if err != nil {
		return nil, err
	}
	line, rest, _ := bytes.Cut(data, []byte("\n"))
	if len(rest) != 0 {
		clear(data)
		return nil, errors.New("read standard input: more than one line")
	}
	if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
		return nil, hint(fmt.Errorf("read standard input: empty, %s expected", prompt), "give it as one line there, or run this at a terminal")
	}
	return line, nil
}

// addPIN adds the flag --pin.
func addPIN(c *cobra.Command, ask *bool) {
	c.Flags().BoolVar(ask, "pin", false, "ask for the PIN of the key's token: for a key made with --pin always")
}

// pinIf asks for a PIN if the flag is there. Standard input has it only if the file is another.
func (a *app) pinIf(ctx context.Context, ask bool, files []string) ([]byte, error) {
	if !ask {
		return nil, nil
	}
	if _, ok := a.terminal(); !ok && (len(files) == 0 || files[0] == "-") {
		return nil, usageError{errors.New("--pin is read from standard input, so that the message must be in a file")}
	}
	return a.secret(ctx, "PIN")
}
