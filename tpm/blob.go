package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// purpose is what the TPM lets a key do.
type purpose int

const (
	purposeNone purpose = iota
	purposeSign
	purposeAgree
)

func (p purpose) String() string { return [...]string{"nothing", "sign", "agree"}[p] }

func purposeOf(u token.Use) purpose {
	switch {
	case u.Signs():
		return purposeSign
	case u.Agrees():
		return purposeAgree
	}
	return purposeNone
}

// keyTemplate is the public area of a new key: it never leaves this TPM, needs no
// authorization value and so no dictionary-attack protection, and has one purpose.
func keyTemplate(a token.Algorithm, p purpose) (tpm2.TPMTPublic, error) {
	for _, c := range curves() {
		if c.algorithm != a {
			continue
		}
		return tpm2.TPMTPublic{
			Type:    tpm2.TPMAlgECC,
			NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{
				FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
				SignEncrypt: p == purposeSign, Decrypt: p == purposeAgree,
			},
			Parameters: eccParms(c.id),
			Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
		}, nil
	}
	return tpm2.TPMTPublic{}, fmt.Errorf("a TPM has no %s keys: %w", string(a), token.ErrUnsupported)
}

// eccParms leaves scheme, KDF and symmetric algorithm open: an ECDSA hash is chosen with
// each signature, and ZGen takes no scheme.
func eccParms(id tpm2.TPMECCCurve) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
		Scheme:    tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
		CurveID:   id,
		KDF:       tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
	})
}

// blob is a key outside the TPM, encrypted by its parent.
type blob struct {
	parent  tpm2.TPMHandle // persistentSRK or ownerSRK
	area    []byte         // TPMT_PUBLIC
	private []byte         // contents of TPM2B_PRIVATE
	name    []byte         // the key's Name, computed here
	public  token.PublicKey
	purpose purpose
}

// is reports whether a loaded object is this key.
func (b *blob) is(h tpm2.NamedHandle) bool { return bytes.Equal(h.Name.Buffer, b.name) }

func newBlob(parent tpm2.TPMHandle, area, private []byte) (*blob, error) {
	b := &blob{parent: parent, area: area, private: private}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return nil, fmt.Errorf("parse public area: %w", err)
	}
	if public.Type != tpm2.TPMAlgECC || public.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("key of type 0x%x with name algorithm 0x%x", public.Type, public.NameAlg)
	}
	if !bytes.Equal(tpm2.Marshal(*public), area) {
		return nil, errors.New("public area is not in its one encoding")
	}
	digest := sha256.Sum256(area)
	b.name = append(binary.BigEndian.AppendUint16(nil, uint16(public.NameAlg)), digest[:]...)
	if b.public, err = publicKey(public); err != nil {
		return nil, err
	}
	b.purpose, err = purposeFrom(public.ObjectAttributes)
	return b, err
}

func purposeFrom(a tpm2.TPMAObject) (purpose, error) {
	switch {
	case a.Restricted || !a.UserWithAuth:
		return purposeNone, errors.New("restricted key, or one that needs a policy")
	case a.SignEncrypt && !a.Decrypt:
		return purposeSign, nil
	case a.Decrypt && !a.SignEncrypt:
		return purposeAgree, nil
	}
	return purposeNone, errors.New("key has not exactly one purpose")
}

func publicKey(public *tpm2.TPMTPublic) (token.PublicKey, error) {
	parms, err := public.Parameters.ECCDetail()
	if err != nil {
		return token.PublicKey{}, err
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return token.PublicKey{}, err
	}
	for _, c := range curves() {
		if c.id == parms.CurveID {
			octets, err := c.encode(point)
			return token.PublicKey{Algorithm: c.algorithm, Octets: octets}, err
		}
	}
	return token.PublicKey{}, fmt.Errorf("key on curve 0x%x", parms.CurveID)
}

// encode writes a point in the uncompressed form of SEC 1. TPMs may leave out leading
// zero octets of a coordinate.
func (c curve) encode(p *tpm2.TPMSECCPoint) ([]byte, error) {
	out := make([]byte, 1+2*c.size)
	out[0] = 4
	for i, b := range [][]byte{p.X.Buffer, p.Y.Buffer} {
		b = bytes.TrimLeft(b, "\x00")
		if len(b) > c.size {
			return nil, fmt.Errorf("coordinate of %d octets on %s", len(b), c.algorithm)
		}
		copy(out[1+(i+1)*c.size-len(b):], b)
	}
	return out, nil
}

// keyFile is TPMKey of the TSS2 private key format (the OpenSSL TPM2 engine, James Bottomley's
// draft "ASN.1 Specification for TPM 2.0 Key Files", 3.1), without its optional
// policies and with empty authorization only.
type keyFile struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	Parent    int64
	Public    []byte // TPM2B_PUBLIC
	Private   []byte // TPM2B_PRIVATE
}

// id-loadablekey
func oidLoadableKey() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3} }

// maxHandle bounds a key file; those of ECC keys have about 250 octets, of RSA keys 600.
const maxHandle = 4096

func (b *blob) encode() ([]byte, error) {
	return asn1.Marshal(keyFile{
		Type: oidLoadableKey(), EmptyAuth: true, Parent: int64(b.parent),
		Public: sized(b.area), Private: sized(b.private),
	})
}

func decodeBlob(der []byte) (*blob, error) {
	if len(der) > maxHandle {
		return nil, fmt.Errorf("key file of %d octets", len(der))
	}
	var f keyFile
	rest, err := asn1.Unmarshal(der, &f)
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse key file: %w", err)
	case len(rest) != 0:
		return nil, errors.New("octets after the key file")
	case !f.Type.Equal(oidLoadableKey()) || !f.EmptyAuth:
		return nil, errors.New("not a loadable key with empty authorization")
	case f.Parent != int64(persistentSRK) && f.Parent != int64(ownerSRK):
		return nil, fmt.Errorf("parent 0x%x is not the storage root key", f.Parent)
	}
	area, err := unsized(f.Public)
	if err != nil {
		return nil, fmt.Errorf("public area: %w", err)
	}
	private, err := unsized(f.Private)
	if err != nil {
		return nil, fmt.Errorf("private area: %w", err)
	}
	b, err := newBlob(tpm2.TPMHandle(f.Parent), area, private)
	if err != nil {
		return nil, err
	}
	if again, err := b.encode(); err != nil || !bytes.Equal(again, der) {
		return nil, errors.New("key file is not in its one encoding")
	}
	return b, nil
}

// sized prefixes the two octets of length of a TPM2B.
func sized(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

func unsized(b []byte) ([]byte, error) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return nil, errors.New("length does not match")
	}
	return b[2:], nil
}
