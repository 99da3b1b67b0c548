package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// rsaFlags are those of decrypt for an RSA ciphertext.
type rsaFlags struct {
	padding, label string
	length         int
}

func (f *rsaFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.padding, "rsa-padding", "", "FILE is an RSA ciphertext: oaep-sha1, oaep-sha256, oaep-sha384, oaep-sha512 or pkcs1")
	c.Flags().StringVar(&f.label, "rsa-label", "", "the `text` that is OAEP's label")
	c.Flags().IntVar(&f.length, "rsa-length", 0, "with pkcs1: the `octets` of the plaintext")
}

// check refuses flags that do not go together.
func (f rsaFlags) check(c *cobra.Command, key string) error {
	changed := func(name string) bool { return c.Flags().Changed(name) }
	if f.padding == "" {
		if changed("rsa-label") || changed("rsa-length") {
			return usageError{errors.New("--rsa-label and --rsa-length need --rsa-padding")}
		}
		return nil
	}
	switch {
	case key == "":
		return usageError{errors.New("--rsa-padding needs --key: an RSA ciphertext names no key")}
	case changed("signer") || changed("partial"):
		return usageError{errors.New("--signer and --partial are for envelopes, not for RSA ciphertexts")}
	case (f.padding == "pkcs1") != changed("rsa-length"):
		return usageError{errors.New("--rsa-length goes with --rsa-padding pkcs1, which has no other sign of a right plaintext")}
	}
	return nil
}

// decryptRSA writes the plaintext of an RSA ciphertext.
func (a *app) decryptRSA(ctx context.Context, f rsaFlags, key string, pin []byte, file string) error {
	ciphertext, err := a.read(file, maxSmall)
	if err != nil {
		return err
	}
	op := mesh.OperationDecrypt{KeyId: key, PIN: pin, RSA: &mesh.DecryptRSA{Padding: f.padding, Ciphertext: ciphertext, Length: f.length}}
	if f.label != "" {
		op.RSA.Label = []byte(f.label)
	}
	return a.with(ctx, func(conn *client.Client) error {
		result, err := conn.Decrypt(ctx, op)
		if err != nil {
			return err
		}
		defer result.Wipe()
		if result.Key == nil {
			return fmt.Errorf("read the agent's answer: %w", client.ErrProtocol)
		}
		return a.print(result.Key)
	})
}
