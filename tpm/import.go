package tpm

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Import encrypts a private key here to the storage root key, and has TPM2_Import take it
// (TPM 2.0 Part 1, 23.3 and Part 3, 13.3). The key gets the same binding and PIN as a generated
// one; its attributes say for ever that it was not generated in the TPM.
// RSA keys must have two primes and the exponent 65537.
// Errors: as token.Importer.
func (t *Token) Import(ctx context.Context, req token.ImportRequest) (token.Created, error) {
	if req.Private == nil {
		return token.Created{}, fmt.Errorf("tpm: import key: no private key: %w", token.ErrBadKey)
	}
	if err := t.find(ctx); err != nil {
		return token.Created{}, err
	}
	o, err := t.prepare(req.Private.Algorithm, req.Use, req.Policy, req.Auth)
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: import key: %w", err)
	}
	defer o.wipe()
	k, err := parsePrivate(req.Private)
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: import key: %w: %w", token.ErrBadKey, err)
	}
	defer clear(k.secret)
	p := purposeOf(req.Private.Algorithm, req.Use)
	b, err := do(ctx, t, "import key", func(d *device) (*blob, error) {
		value, err := o.keyValue(d, ownKeys)
		if err != nil {
			return nil, err
		}
		defer clear(value)
		public, err := keyTemplate(req.Private.Algorithm, p, o != nil, keyBinding(d.srk.Name.Buffer, req.Use, req.Associated))
		if err != nil {
			return nil, err
		}
		public.ObjectAttributes.FixedTPM = false
		public.ObjectAttributes.FixedParent = false
		public.ObjectAttributes.SensitiveDataOrigin = false
		public.Unique = k.unique
		imported, err := d.importKey(public, k, value)
		if err != nil {
			return nil, err
		}
		b, err := checkCreated(imported, public)
		if err != nil {
			return nil, err
		}
		return b, d.reload(&b.object) // the TPM compares the halves of the key
	})
	t.pin.learn(req.Auth.PIN, err)
	if err != nil {
		return token.Created{}, err
	}
	return created(b)
}

// privateKey is a private key in the TPM's words.
type privateKey struct {
	secret []byte // scalar, or the first prime
	unique tpm2.TPMUPublicID
}

func (k *privateKey) sensitive(public tpm2.TPMTPublic, value []byte) []byte {
	s := tpm2.TPMTSensitive{SensitiveType: public.Type, AuthValue: tpm2.TPM2BAuth{Buffer: value}}
	if public.Type == tpm2.TPMAlgRSA {
		s.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgRSA, &tpm2.TPM2BPrivateKeyRSA{Buffer: k.secret})
	} else {
		s.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: k.secret})
	}
	return tpm2.Marshal(s)
}

func parsePrivate(k *token.PrivateKey) (*privateKey, error) {
	if k.Algorithm.RSABits() != 0 {
		return parseRSA(k)
	}
	c, err := keyshare.ParseCurve(string(k.Algorithm))
	if err != nil {
		return nil, err
	}
	if len(k.Scalar) == 0 || len(k.Seed) != 0 || k.RSA != nil {
		return nil, errors.New("a key on this curve is a scalar and nothing else")
	}
	s, err := keyshare.ParseScalar(c, k.Scalar)
	if err != nil {
		return nil, err
	}
	point := s.Public().Bytes()
	size := (len(point) - 1) / 2
	return &privateKey{
		secret: s.Bytes(),
		unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+size]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[1+size:]},
		}),
	}, nil
}

func parseRSA(k *token.PrivateKey) (*privateKey, error) {
	if k.RSA == nil || len(k.Scalar) != 0 || len(k.Seed) != 0 {
		return nil, errors.New("an RSA key is an RSA key and nothing else")
	}
	return rsaPrivate(k.RSA, k.Algorithm.RSABits())
}

func rsaPrivate(k *rsa.PrivateKey, bits int) (*privateKey, error) {
	switch {
	case k.N.BitLen() != bits:
		return nil, fmt.Errorf("RSA key of %d bits", k.N.BitLen())
	case k.E != rsaExponent || len(k.Primes) != 2:
		return nil, fmt.Errorf("RSA key with exponent %d and %d primes", k.E, len(k.Primes))
	case k.Primes[0].BitLen() != bits/2:
		return nil, errors.New("primes of different lengths")
	}
	return &privateKey{
		secret: k.Primes[0].FillBytes(make([]byte, bits/16)),
		unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()}),
	}, k.Validate()
}

// importKey wraps a key to the storage root key and gives TPM2_Import.
func (d *device) importKey(public tpm2.TPMTPublic, k *privateKey, value []byte) (object, error) {
	area := tpm2.Marshal(public)
	name, err := nameOf(public.NameAlg, area)
	if err != nil {
		return object{}, err
	}
	kem, err := tpm2.ImportEncapsulationKey(&d.srk.public)
	if err != nil {
		return object{}, err
	}
	sensitive := k.sensitive(public, value)
	defer clear(sensitive)
	duplicate, seed, err := tpm2.CreateDuplicate(rand.Reader, kem, name, sensitive)
	if err != nil {
		return object{}, fmt.Errorf("wrap key: %w", err)
	}
	var rsp *tpm2.ImportResponse
	err = d.withRoom(1, func() (err error) {
		rsp, err = run(d, tpm2.Import{
			ParentHandle: d.auth(d.srk.NamedHandle, nil, clearly),
			ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](area),
			Duplicate:    tpm2.TPM2BPrivate{Buffer: duplicate},
			InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: seed},
			Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
		})
		return err
	})
	if err != nil {
		return object{}, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	return d.child(area, rsp.OutPrivate.Buffer, value), nil
}
