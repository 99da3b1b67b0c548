package tpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// purpose is what a key is for; a key made by other programs may have several.
type purpose int

const (
	purposeNone purpose = 0
	purposeSign purpose = 1 << (iota - 1)
	purposeAgree
	purposeDecrypt
)

func (p purpose) String() string {
	return map[purpose]string{
		purposeNone: "nothing", purposeSign: "sign", purposeAgree: "agree", purposeDecrypt: "decrypt",
		purposeSign | purposeAgree: "sign and agree", purposeSign | purposeDecrypt: "sign and decrypt",
	}[p]
}

func purposeOf(a token.Algorithm, u token.Use) purpose {
	switch {
	case u.Signs():
		return purposeSign
	case u.Agrees() && a.RSABits() != 0:
		return purposeDecrypt
	case u.Agrees():
		return purposeAgree
	}
	return purposeNone
}

// object is something of the TPM's that is kept outside of it, encrypted by its parent.
type object struct {
	parent     tpm2.TPMHandle // where the parent is: persistent, or a hierarchy that derives it
	rsaParent  bool           // an RSA key is derived, not an ECC key
	parentName []byte         // the parent's Name
	emptyAuth  bool           // no authorization value is needed
	area       []byte         // TPMT_PUBLIC
	private    []byte         // contents of TPM2B_PRIVATE
	name       []byte         // the object's Name, computed here
	public     *tpm2.TPMTPublic
}

// is reports whether a loaded object is this one.
func (o *object) is(h tpm2.NamedHandle) bool { return bytes.Equal(h.Name.Buffer, o.name) }

// parseArea sets what the public area says.
func (o *object) parseArea() error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](o.area)
	if err != nil {
		return fmt.Errorf("parse public area: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(*public), o.area) {
		return errors.New("public area is not in its one encoding")
	}
	name, err := nameOf(public.NameAlg, o.area)
	if err != nil {
		return err
	}
	o.public, o.name = public, name
	return nil
}

// fits reports whether the object has a template's public area but for the key itself.
func (o *object) fits(template tpm2.TPMTPublic) bool {
	if o.public.Type != template.Type {
		return false
	}
	template.Unique = o.public.Unique
	return bytes.Equal(tpm2.Marshal(template), o.area)
}

// nameOf computes a Name, TPM 2.0 Part 1, 16.
func nameOf(alg tpm2.TPMAlgID, area []byte) ([]byte, error) {
	hash, err := alg.Hash()
	if err != nil || hash.Size() < sha256.Size {
		return nil, fmt.Errorf("name algorithm 0x%x", alg)
	}
	h := hash.New()
	h.Write(area)
	return h.Sum(binary.BigEndian.AppendUint16(nil, uint16(alg))), nil
}

// bound reports whether the object was made by this package, which binds it to what goes
// with it by its authorization policy.
func (o *object) bound() bool { return len(o.public.AuthPolicy.Buffer) != 0 }

// bindingLabel has the 32 octets of a policy digest.
const bindingLabel = "mesh-agent: TPM object binding 1"

// binding is an authorization policy that nothing satisfies: the digest of octets that go
// with an object. The policy is part of the object's Name, and so the TPM sees to it that it
// does not change; it is the one field of a key that takes octets of its maker.
// A policy that something satisfies is the digest of an earlier policy digest (or 32 zeros)
// and more (TPM 2.0 Part 1, 19.7), never of octets that begin with the label, unless
// SHA-256 can be made to return the label.
func binding(fields ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte(bindingLabel))
	for _, f := range fields {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(f))))
		h.Write(f)
	}
	return h.Sum(nil)
}

func keyBinding(parentName []byte, u token.Use, associated []byte) []byte {
	return binding([]byte("key"), parentName, []byte(u), associated)
}

// keyTemplate is the public area of a new key with one purpose. It never leaves this TPM;
// the TPM counts wrong authorization values if it has one (pin).
func keyTemplate(a token.Algorithm, p purpose, pin bool, policy []byte) (tpm2.TPMTPublic, error) {
	public := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: !pin,
			SignEncrypt: p == purposeSign, Decrypt: p == purposeAgree || p == purposeDecrypt,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
	}
	if bits := a.RSABits(); bits != 0 {
		public.Type, public.Parameters = tpm2.TPMAlgRSA, rsaParms(bits)
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		return public, nil
	}
	for _, c := range curves() {
		if c.algorithm == a {
			public.Type, public.Parameters = tpm2.TPMAlgECC, eccParms(c.id)
			public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
			return public, nil
		}
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

// rsaParms leaves the scheme open: it is chosen with each operation. The exponent is 65537.
func rsaParms(bits int) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
		Scheme:    tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull},
		KeyBits:   tpm2.TPMKeyBits(bits),
	})
}

// blob is a key outside the TPM.
type blob struct {
	object
	key     token.PublicKey
	purpose purpose
}

func newBlob(o object) (*blob, error) {
	b := &blob{object: o}
	err := b.parseArea()
	if err != nil {
		return nil, err
	}
	if b.key, err = publicKey(b.public); err != nil {
		return nil, err
	}
	if b.purpose, err = purposeFrom(b.public); err != nil {
		return nil, err
	}
	if !b.bound() {
		return b, nil
	}
	switch {
	case b.purpose != purposeSign && b.purpose != purposeAgree && b.purpose != purposeDecrypt:
		return nil, errors.New("key has not exactly one purpose")
	case b.emptyAuth != b.public.ObjectAttributes.NoDA:
		return nil, errors.New("key file and key differ in whether it needs a PIN")
	}
	return b, nil
}

// check compares the key with what its record says of it.
func (b *blob) check(req token.OpenRequest) error {
	switch {
	case !b.key.Equal(req.Public):
		return errors.New("public key is not that of the record")
	case purposeOf(b.key.Algorithm, req.Use)&b.purpose == 0:
		return fmt.Errorf("made to %s, used as %q", b.purpose, string(req.Use))
	case b.bound() && !bytes.Equal(b.public.AuthPolicy.Buffer, keyBinding(b.parentName, req.Use, req.Associated)):
		return errors.New("use or associated data is not that with which the key was made")
	case !req.Imported && !b.generated():
		return errors.New("not generated in this TPM by this program, although its record says so")
	}
	return nil
}

// generated reports whether this TPM has generated the key for this program and gives it to no other TPM. The TPM's own
// attributes say so: they are part of the key's Name.
func (b *blob) generated() bool {
	a := b.public.ObjectAttributes
	return b.bound() && a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin
}

func purposeFrom(public *tpm2.TPMTPublic) (purpose, error) {
	a := public.ObjectAttributes
	if a.Restricted || !a.UserWithAuth {
		return purposeNone, errors.New("restricted key, or one that needs a policy")
	}
	p := purposeNone
	if a.SignEncrypt {
		p |= purposeSign
	}
	switch {
	case a.Decrypt && public.Type == tpm2.TPMAlgRSA:
		p |= purposeDecrypt
	case a.Decrypt:
		p |= purposeAgree
	}
	if p == purposeNone {
		return purposeNone, errors.New("key has no purpose")
	}
	return p, nil
}

// publicKey reads the public key of an area whose schemes are open.
func publicKey(public *tpm2.TPMTPublic) (token.PublicKey, error) {
	switch public.Type {
	case tpm2.TPMAlgECC:
		return eccKey(public)
	case tpm2.TPMAlgRSA:
		return rsaKey(public)
	}
	return token.PublicKey{}, fmt.Errorf("key of type 0x%x", public.Type)
}

func eccKey(public *tpm2.TPMTPublic) (token.PublicKey, error) {
	parms, err := public.Parameters.ECCDetail()
	if err != nil {
		return token.PublicKey{}, err
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return token.PublicKey{}, err
	}
	if parms.Scheme.Scheme != tpm2.TPMAlgNull || parms.KDF.Scheme != tpm2.TPMAlgNull {
		return token.PublicKey{}, fmt.Errorf("key with the fixed scheme 0x%x", parms.Scheme.Scheme)
	}
	for _, c := range curves() {
		if c.id == parms.CurveID {
			octets, err := c.encode(point.X.Buffer, point.Y.Buffer)
			return token.PublicKey{Algorithm: c.algorithm, Octets: octets}, err
		}
	}
	return token.PublicKey{}, fmt.Errorf("key on curve 0x%x", parms.CurveID)
}

func rsaKey(public *tpm2.TPMTPublic) (token.PublicKey, error) {
	parms, err := public.Parameters.RSADetail()
	if err != nil {
		return token.PublicKey{}, err
	}
	modulus, err := public.Unique.RSA()
	if err != nil {
		return token.PublicKey{}, err
	}
	if parms.Scheme.Scheme != tpm2.TPMAlgNull || parms.Exponent != 0 && parms.Exponent != rsaExponent {
		return token.PublicKey{}, fmt.Errorf("RSA key with scheme 0x%x and exponent %d", parms.Scheme.Scheme, parms.Exponent)
	}
	n := new(big.Int).SetBytes(modulus.Buffer)
	for _, a := range token.Algorithms() {
		if bits := a.RSABits(); bits != 0 && bits == int(parms.KeyBits) && bits == n.BitLen() {
			return token.PublicKey{
				Algorithm: a,
				Octets:    x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: n, E: rsaExponent}),
			}, nil
		}
	}
	return token.PublicKey{}, fmt.Errorf("RSA key of %d bits", parms.KeyBits)
}

// rsaExponent is the public exponent that TPMs write as zero.
const rsaExponent = 65537

// encode writes a point in the uncompressed form of SEC 1. TPMs may leave out leading
// zero octets of a coordinate.
func (c curve) encode(coordinates ...[]byte) ([]byte, error) {
	out := make([]byte, 1+2*c.size)
	out[0] = 4
	for i, b := range coordinates {
		b = bytes.TrimLeft(b, "\x00")
		if len(b) > c.size {
			return nil, fmt.Errorf("coordinate of %d octets on %s", len(b), c.algorithm)
		}
		copy(out[1+(i+1)*c.size-len(b):], b)
	}
	return out, nil
}
