package main

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

func newKeyPublicCommand(a *app) *cobra.Command {
	var format, generation string
	c := &cobra.Command{
		Use:   "public UDF",
		Short: "Print a public key",
		Long: `Prints a public key as Mesh KeyData (--format mesh), as a line for authorized_keys
(--format ssh), as SubjectPublicKeyInfo (--format pem), or as an entry for an account's catalog of
applications (--format catalog), by which a key for SSH that was made on this device is published.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, ids []string) error {
			g, err := parseGeneration(generation)
			if err != nil {
				return err
			}
			encode, err := publicEncoder(format, g)
			switch {
			case err != nil:
				return err
			case a.json && slices.Contains([]string{"ssh", "pem"}, format):
				return usageError{fmt.Errorf("--json and --format %s exclude each other", format)}
			}
			info, err := a.keyInfo(c.Context(), ids[0])
			if err != nil {
				return err
			}
			key, err := info.PublicKey.PublicKey()
			if err != nil {
				return fmt.Errorf("read the agent's answer: %w", err)
			}
			out, err := encode(key, info.Label)
			if err != nil {
				return err
			}
			return a.print(out)
		},
	}
	c.Flags().StringVar(&format, "format", "mesh", "mesh, ssh, pem or catalog")
	c.Flags().StringVar(&generation, "generation", "g1", "which UDF to write in the KeyData: g1 or g2")
	return c
}

// publicEncoder returns the function that writes a public key, with a label where the
// format has a place for it.
func publicEncoder(format string, g mesh.Generation) (func(token.PublicKey, string) ([]byte, error), error) {
	switch format {
	case "mesh":
		return func(key token.PublicKey, _ string) ([]byte, error) {
			return append(mesh.MarshalKeyDataPublic(key, g), '\n'), nil
		}, nil
	case "ssh":
		return encodeSSH, nil
	case "pem":
		return encodePEM, nil
	case "catalog":
		return func(key token.PublicKey, label string) ([]byte, error) { return encodeCatalog(key, label, g) }, nil
	}
	return nil, usageError{fmt.Errorf("--format %q is none of mesh, ssh, pem, catalog", format)}
}

// encodeCatalog writes a CatalogedApplicationSsh without grants
// (draft-hallambaker-mesh-schema-08, Section 10.3).
func encodeCatalog(key token.PublicKey, label string, g mesh.Generation) ([]byte, error) {
	entry, err := device.NewCatalogedApplicationSSH(key, label, nil, g)
	if err != nil {
		return nil, err
	}
	out, err := entry.Marshal(g)
	return append(out, '\n'), err
}

// encodeSSH writes a line as sshd(8) describes under "AUTHORIZED_KEYS FILE FORMAT".
func encodeSSH(key token.PublicKey, label string) ([]byte, error) {
	standard, err := key.Standard()
	if err != nil {
		return nil, err
	}
	public, err := ssh.NewPublicKey(standard)
	if err != nil {
		return nil, fmt.Errorf("write %s key for SSH: %w", key.Algorithm, err)
	}
	line := bytes.TrimSuffix(ssh.MarshalAuthorizedKey(public), []byte("\n"))
	if label != "" {
		line = append(append(line, ' '), label...)
	}
	return append(line, '\n'), nil
}

// encodePEM writes a SubjectPublicKeyInfo in PEM.
func encodePEM(key token.PublicKey, _ string) ([]byte, error) {
	der, err := subjectPublicKeyInfo(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// subjectPublicKeyInfo has the 448 curves, which crypto/x509 has not: RFC 8410,
// Section 4, with the object identifiers of its Section 3.
func subjectPublicKeyInfo(key token.PublicKey) ([]byte, error) {
	var oid asn1.ObjectIdentifier
	octets := key.Octets
	switch key.Algorithm {
	case token.X448:
		oid, octets = asn1.ObjectIdentifier{1, 3, 101, 111}, octets[:56]
	case token.Ed448:
		oid = asn1.ObjectIdentifier{1, 3, 101, 113}
	default:
		standard, err := key.Standard()
		if err != nil {
			return nil, err
		}
		return x509.MarshalPKIXPublicKey(standard)
	}
	return asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: oid}, asn1.BitString{Bytes: octets, BitLength: 8 * len(octets)}})
}
