package main

import (
	"encoding/asn1"
	"encoding/pem"
	"net"
	"os"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/rogpeppe/go-internal/testscript"
)

// makeSSHTPMKey makes the key that ssh-tpm-keygen makes by default, and writes it as that does:
// P-256, to sign and decrypt, subject to the dictionary-attack protection though it has no
// PIN, under a parent of the template H-2, with a description (github.com/foxboron/go-tpm-keyfiles).
func makeSSHTPMKey(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: sshtpmkey VAR FILE")
	}
	c, err := net.Dial("unix", strings.TrimPrefix(ts.Getenv(args[0]), "swtpm:"))
	ts.Check(err)
	defer c.Close()
	link := transport.FromReadWriter(c)
	template := tpm2.ECCSRKTemplate
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(link)
	ts.Check(err)
	made, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{
				FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true, Decrypt: true,
			},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
				CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			}),
		}),
	}.Execute(link)
	ts.Check(err)
	_, err = tpm2.FlushContext{FlushHandle: srk.ObjectHandle}.Execute(link)
	ts.Check(err)
	der, err := asn1.Marshal(struct {
		Type        asn1.ObjectIdentifier
		EmptyAuth   bool   `asn1:"explicit,tag:0"`
		Description string `asn1:"explicit,tag:4,utf8"`
		Parent      int64
		Public      []byte
		Private     []byte
	}{
		asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}, true, "me@here", int64(tpm2.TPMRHOwner),
		tpm2.Marshal(made.OutPublic), tpm2.Marshal(made.OutPrivate),
	})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der}), 0o600))
}
