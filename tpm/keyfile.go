package tpm

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// keyFile is TPMKey of the TSS2 private key format, which the TPM engines and
// providers of OpenSSL, ssh-tpm-agent and others share (James Bottomley, "ASN.1 Specification
// for TPM 2.0 Key Files", draft-bottomley-tpm2-keys, 3.1).
type keyFile struct {
	Type        asn1.ObjectIdentifier
	EmptyAuth   bool          `asn1:"optional,explicit,tag:0"`
	Policy      asn1.RawValue `asn1:"optional,explicit,tag:1"`
	Secret      []byte        `asn1:"optional,explicit,tag:2"`
	AuthPolicy  asn1.RawValue `asn1:"optional,explicit,tag:3"`
	Description string        `asn1:"optional,explicit,tag:4,utf8"`
	RSAParent   bool          `asn1:"optional,explicit,tag:5"`
	Parent      int64
	Public      []byte // TPM2B_PUBLIC
	Private     []byte // TPM2B_PRIVATE
}

// looseKeyFile is a keyFile in which true may be any octet but zero: the OpenSSL provider
// writes 1, where DER has 255.
type looseKeyFile struct {
	Type        asn1.ObjectIdentifier
	EmptyAuth   asn1.RawValue `asn1:"optional,explicit,tag:0"`
	Policy      asn1.RawValue `asn1:"optional,explicit,tag:1"`
	Secret      []byte        `asn1:"optional,explicit,tag:2"`
	AuthPolicy  asn1.RawValue `asn1:"optional,explicit,tag:3"`
	Description string        `asn1:"optional,explicit,tag:4,utf8"`
	RSAParent   asn1.RawValue `asn1:"optional,explicit,tag:5"`
	Parent      int64
	Public      []byte
	Private     []byte
}

func (f looseKeyFile) strict() keyFile {
	isTrue := func(tagged asn1.RawValue) bool {
		var v asn1.RawValue
		_, err := asn1.Unmarshal(tagged.Bytes, &v)
		return err == nil && v.Tag == asn1.TagBoolean && len(v.Bytes) == 1 && v.Bytes[0] != 0
	}
	return keyFile{
		Type: f.Type, EmptyAuth: isTrue(f.EmptyAuth), Policy: f.Policy, Secret: f.Secret, AuthPolicy: f.AuthPolicy,
		Description: f.Description, RSAParent: isTrue(f.RSAParent), Parent: f.Parent, Public: f.Public, Private: f.Private,
	}
}

const pemType = "TSS2 PRIVATE KEY"

// id-loadablekey, id-importablekey and id-sealedkey
func oidLoadableKey() asn1.ObjectIdentifier   { return asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3} }
func oidImportableKey() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4} }
func oidSealedKey() asn1.ObjectIdentifier     { return asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5} }

// objectFile is what this package keeps of an object: its key file and its parent's Name.
type objectFile struct {
	Version    int // 1
	ParentName []byte
	Key        keyFile
}

// maxFile bounds a file; those of ECC keys have about 300 octets, of RSA keys 1000.
const maxFile = 4096

func (o *object) keyFile() keyFile {
	kind := oidLoadableKey()
	if o.public.Type == tpm2.TPMAlgKeyedHash {
		kind = oidSealedKey()
	}
	return keyFile{
		Type: kind, EmptyAuth: o.emptyAuth, RSAParent: o.rsaParent, Parent: int64(o.parent),
		Public: sized(o.area), Private: sized(o.private),
	}
}

func (o *object) file() objectFile {
	return objectFile{Version: 1, ParentName: o.parentName, Key: o.keyFile()}
}

func (o *object) encode() ([]byte, error) { return asn1.Marshal(o.file()) }

// object checks a file that this package made.
func (f objectFile) object() (object, error) {
	if f.Version != 1 {
		return object{}, fmt.Errorf("file of version %d", f.Version)
	}
	o, err := f.Key.object()
	if err != nil {
		return object{}, err
	}
	o.parentName = f.ParentName
	return o, nil
}

// object reads a key file without what makes it special: policies and wrapped keys.
func (f keyFile) object() (object, error) {
	switch {
	case f.Type.Equal(oidImportableKey()):
		return object{}, errors.New("importable key, which its program has to import first")
	case !f.Type.Equal(oidLoadableKey()) && !f.Type.Equal(oidSealedKey()):
		return object{}, fmt.Errorf("key of type %v", f.Type)
	case len(f.Policy.FullBytes) != 0 || len(f.AuthPolicy.FullBytes) != 0:
		return object{}, errors.New("key that needs a policy")
	case len(f.Secret) != 0:
		return object{}, errors.New("loadable key with a wrapped secret")
	case f.Parent>>24 != persistentRange && f.Parent != int64(ownerSRK):
		return object{}, fmt.Errorf("parent 0x%x is neither persistent nor the owner hierarchy", f.Parent)
	}
	area, err := unsized(f.Public)
	if err != nil {
		return object{}, fmt.Errorf("public area: %w", err)
	}
	private, err := unsized(f.Private)
	if err != nil {
		return object{}, fmt.Errorf("private area: %w", err)
	}
	return object{
		parent: tpm2.TPMHandle(f.Parent), rsaParent: f.RSAParent, emptyAuth: f.EmptyAuth,
		area: area, private: private,
	}, nil
}

func decodeObject(der []byte) (object, error) {
	f, err := parseFile[objectFile](der, maxFile)
	if err != nil {
		return object{}, err
	}
	return f.object()
}

// parseFile takes DER in its one encoding only.
func parseFile[T any](der []byte, limit int) (f T, err error) {
	if len(der) > limit {
		return f, fmt.Errorf("file of %d octets", len(der))
	}
	rest, err := asn1.Unmarshal(der, &f)
	if err != nil {
		return f, fmt.Errorf("parse file: %w", err)
	}
	if len(rest) != 0 {
		return f, errors.New("octets after the file")
	}
	if again, err := asn1.Marshal(f); err != nil || !bytes.Equal(again, der) {
		return f, errors.New("file is not in its one encoding")
	}
	return f, nil
}

func decodeBlob(der []byte) (*blob, error) {
	o, err := decodeObject(der)
	if err != nil {
		return nil, err
	}
	return newBlob(o)
}

// parsePEM returns the object of a TSS2 key file in PEM, where other programs may have
// encoded it less strictly. The parent's Name is not in it.
func parsePEM(file []byte) (object, error) {
	block, text := pem.Decode(file)
	switch {
	case block == nil:
		return object{}, errors.New("no PEM block")
	case len(file) > maxFile:
		return object{}, fmt.Errorf("file of %d octets", len(file))
	case block.Type != pemType:
		return object{}, fmt.Errorf("PEM block %q, want %q", block.Type, pemType)
	case len(bytes.TrimSpace(text)) != 0:
		return object{}, errors.New("text after the key")
	}
	var f looseKeyFile
	rest, err := asn1.Unmarshal(block.Bytes, &f)
	if err != nil {
		return object{}, fmt.Errorf("parse key file: %w", err)
	}
	if len(rest) != 0 {
		return object{}, errors.New("octets after the key file")
	}
	return f.strict().object()
}

func (o *object) pem() ([]byte, error) {
	der, err := asn1.Marshal(o.keyFile())
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// sized prefixes the two octets of length of a TPM2B.
func sized(b []byte) []byte { return appendSized(nil, b) }

func unsized(b []byte) ([]byte, error) {
	first, rest, err := cut(b)
	if err != nil || len(rest) != 0 {
		return nil, errors.New("length does not match")
	}
	return first, nil
}
