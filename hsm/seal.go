package hsm

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// A sealed secret is a version octet, a form, and a handle, a public key and the ciphertext, the first
// two with two octets of length. The form says which key of the token opens it:
//
//	formECDH  P-256: HPKE (RFC 9180) with DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
//	formRSA   RSA-2048: RSAES-OAEP with SHA-256 over a fresh key, then AES-256-GCM with it
const (
	sealVersion = 1
	formECDH    = 1
	formRSA     = 2

	sealDomain = "mesh-agent pkcs11 seal v1"
	sealLabel  = "mesh-agent sealing key"
)

// Seal encrypts to a key of the token that does nothing else; the first Seal makes it.
// Before a secret is sealed to it, the token has shown that it holds the private half: in some
// tokens anybody can put a public key. A token that asks for a PIN seals with GuardPIN only.
// Errors: token.ErrUnsupported, token.ErrAuthNeeded, token.ErrAuthWrong, token.ErrLockedOut,
// token.ErrAbsent, token.ErrReplaced, token.ErrFault.
func (t *Token) Seal(ctx context.Context, req token.SealRequest) (token.Sealed, error) {
	var sealed token.Sealed
	if req.PCRs != "" {
		return sealed, fmt.Errorf("pkcs11: seal: a PKCS#11 token has no PCRs: %w", token.ErrUnsupported)
	}
	key, err := t.sealKey(ctx, req)
	if err != nil {
		return sealed, err
	}
	sealed.Guard = token.GuardPIN
	if b := t.bound.Load(); b != nil && b.info.flags&ckfLoginRequired == 0 {
		sealed.Guard = token.GuardMachine
	}
	sealed.Blob, err = key.seal(req.Secret, req.Associated)
	if err != nil {
		return token.Sealed{}, fmt.Errorf("pkcs11: seal: %w", err)
	}
	return sealed, nil
}

// Unseal decrypts with the key of the token that the blob names. Errors: token.ErrCorrupt,
// token.ErrAuthNeeded, token.ErrAuthWrong, token.ErrLockedOut, token.ErrAbsent;
// token.ErrReplaced where the blob is for a token with another serial number.
func (t *Token) Unseal(ctx context.Context, req token.UnsealRequest) ([]byte, error) {
	s, err := decodeSealed(req.Blob)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: unseal: %w", err)
	}
	var secret []byte
	err = t.use(ctx, req.Auth, "unseal", func(b *binding) error {
		key, err := t.sealKeyAt(b, s)
		if err != nil {
			return err
		}
		secret, err = key.open(ctx, req.Auth, s.ciphertext, req.Associated)
		return err
	})
	return secret, err
}

// sealKey is a key that secrets are sealed to.
type sealKey struct {
	form   byte
	handle handle
	public token.PublicKey
	agree  *agreeKey   // formECDH
	rsa    *decryptKey // formRSA
}

// sealKey finds or makes the sealing key.
func (t *Token) sealKey(ctx context.Context, req token.SealRequest) (*sealKey, error) {
	var key *sealKey
	err := t.use(ctx, req.Auth, "seal", func(b *binding) error {
		login := b.info.flags&ckfLoginRequired != 0
		switch {
		case req.PIN != token.PINNever && req.PIN != token.PINOnce && req.PIN != token.PINDefault:
			return fmt.Errorf("PIN policy %q: %w", string(req.PIN), token.ErrUnsupported)
		case req.PIN == token.PINNever && login:
			return fmt.Errorf("this token asks for its PIN: %w", token.ErrUnsupported)
		case req.PIN == token.PINOnce && !login:
			return fmt.Errorf("this token has no PIN: %w", token.ErrUnsupported)
		}
		// One at a time, so that two do not make two keys.
		select {
		case t.sealing <- struct{}{}:
			defer func() { <-t.sealing }()
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		key, err = t.findSealKey(ctx, b, req.Auth)
		return err
	})
	return key, err
}

func (t *Token) findSealKey(ctx context.Context, b *binding, auth token.Auth) (*sealKey, error) {
	if key := t.sealsTo.Load(); key != nil && key.handle.serial == b.info.serial {
		return key, nil
	}
	form, k, u := byte(formECDH), kind{}, token.UseAgree
	k, ok := b.kind(token.P256)
	if !ok || k.derive == 0 {
		form, u = formRSA, token.UseDecrypt
		if k, ok = b.kind(token.RSA2048); !ok || !k.supports(u, b.mechanisms) {
			return nil, fmt.Errorf("this token has neither ECDH on P-256 nor RSA decryption: %w", token.ErrUnsupported)
		}
	}
	template := []attribute{number(ckaClass, ckoPublicKey), yes(ckaToken), octets(ckaLabel, []byte(sealLabel))}
	found, err := t.findAll(ctx, b, template, nil, publicAttributes)
	if err != nil {
		return nil, err
	}
	for _, o := range found {
		public, err := k.public(o)
		if err != nil || len(o.value(ckaID)) == 0 || len(o.value(ckaID)) > maxID {
			continue
		}
		key, err := t.newSealKey(form, k, handle{serial: b.info.serial, id: o.value(ckaID)}, public)
		if err != nil {
			return nil, err
		}
		if err := key.prove(ctx, auth); errors.Is(err, token.ErrNotFound) || errors.Is(err, token.ErrFault) {
			continue // a public key without its private key
		} else if err != nil {
			return nil, err
		}
		if known, err := t.knownElsewhere(ctx, b, key.handle.id); err != nil {
			return nil, err
		} else if known {
			continue
		}
		t.sealsTo.Store(key)
		return key, nil
	}
	return t.makeSealKey(ctx, b, auth, form, k, u)
}

// knownElsewhere reports whether the token says of a private key that it was not generated there: whoever once had
// the PIN can have put in one that he keeps, to read what is sealed from then on. NSS says so of all keys.
func (t *Token) knownElsewhere(ctx context.Context, b *binding, id []byte) (bool, error) {
	if isNSS(b.info.manufacturer) {
		return false, nil // whoever has the PIN can take its keys out, too
	}
	private, err := t.find(ctx, b, ckoPrivateKey, id, ckaLocal)
	for _, o := range private {
		if local, told := o.is(ckaLocal); told && !local {
			return true, err
		}
	}
	return false, err
}

func (t *Token) makeSealKey(ctx context.Context, b *binding, auth token.Auth, form byte, k kind, u token.Use) (*sealKey, error) {
	id := make([]byte, idLength)
	rand.Read(id)
	created, err := t.generate(ctx, b, k, u, token.Policy{}, id, sealLabel)
	if err != nil {
		return nil, err
	}
	key, err := t.newSealKey(form, k, handle{serial: b.info.serial, id: id}, created.Public)
	if err == nil {
		err = key.prove(ctx, auth)
	}
	if err != nil {
		return nil, err
	}
	t.sealsTo.Store(key)
	return key, nil
}

func (t *Token) newSealKey(form byte, k kind, h handle, public token.PublicKey) (*sealKey, error) {
	s := &sealKey{form: form, handle: h, public: public}
	use := token.UseAgree
	if form == formRSA {
		use = token.UseDecrypt
	}
	key, err := newKey(t, k, h, public, use)
	if err != nil {
		return nil, err
	}
	switch key := key.(type) {
	case *agreeKey:
		s.agree = key
	case *decryptKey:
		s.rsa = key
	}
	return s, nil
}

// sealKeyAt returns the key that a blob names.
func (t *Token) sealKeyAt(b *binding, s sealed) (*sealKey, error) {
	if s.handle.serial != b.info.serial {
		return nil, fmt.Errorf("%w: sealed to the token with serial %q", token.ErrReplaced, s.handle.serial)
	}
	a := token.P256
	if s.form == formRSA {
		a = token.RSA2048
	}
	k, ok := b.kind(a)
	if !ok {
		return nil, fmt.Errorf("%w: this token has no %s keys", token.ErrCorrupt, string(a))
	}
	return t.newSealKey(s.form, k, s.handle, token.PublicKey{Algorithm: a, Octets: s.public})
}

// prove has the token show that it holds the private key.
func (s *sealKey) prove(ctx context.Context, auth token.Auth) error {
	if s.agree != nil {
		_, err := s.agree.AgreePoint(ctx, token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.P256).Bytes(), Auth: auth})
		return err
	}
	challenge := make([]byte, 32)
	rand.Read(challenge)
	ciphertext, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, s.rsa.standard, challenge, nil)
	if err != nil {
		return err
	}
	got, err := s.rsa.Decrypt(ctx, token.DecryptRequest{Padding: token.PaddingOAEP, Hash: crypto.SHA256, Ciphertext: ciphertext, Auth: auth})
	if err == nil && string(got) != string(challenge) || errors.Is(err, token.ErrDecrypt) {
		return token.ErrFault
	}
	return err
}

func info(associated []byte) []byte {
	sum := sha256.Sum256(associated)
	return append([]byte(sealDomain), sum[:]...)
}

func (s *sealKey) seal(secret, associated []byte) ([]byte, error) {
	out := sealed{form: s.form, handle: s.handle, public: s.public.Octets}
	var err error
	if s.form == formECDH {
		out.ciphertext, err = token.EncryptTo(s.public, info(associated), secret)
	} else {
		out.ciphertext, err = s.sealRSA(secret, info(associated))
	}
	if err != nil {
		return nil, err
	}
	return out.encode(), nil
}

func (s *sealKey) sealRSA(secret, info []byte) ([]byte, error) {
	key := make([]byte, 32)
	rand.Read(key)
	defer clear(key)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, s.rsa.standard, key, nil)
	if err != nil {
		return nil, err
	}
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(wrapped, make([]byte, aead.NonceSize()), secret, info), nil // the key is used once
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// open decrypts.
func (s *sealKey) open(ctx context.Context, auth token.Auth, ciphertext, associated []byte) ([]byte, error) {
	if s.form == formECDH {
		return token.DecryptWith(ctx, s.agree, auth, info(associated), ciphertext)
	}
	return s.openRSA(ctx, auth, ciphertext, info(associated))
}

func (s *sealKey) openRSA(ctx context.Context, auth token.Auth, ciphertext, info []byte) ([]byte, error) {
	corrupt := fmt.Errorf("%w: it does not open", token.ErrCorrupt)
	size := s.rsa.standard.Size()
	if len(ciphertext) < size {
		return nil, corrupt
	}
	key, err := s.rsa.Decrypt(ctx, token.DecryptRequest{Padding: token.PaddingOAEP, Hash: crypto.SHA256, Ciphertext: ciphertext[:size], Auth: auth})
	if errors.Is(err, token.ErrDecrypt) {
		return nil, corrupt
	}
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := newGCM(key)
	if err != nil {
		return nil, corrupt
	}
	secret, err := aead.Open(nil, make([]byte, aead.NonceSize()), ciphertext[size:], info)
	if err != nil {
		return nil, corrupt
	}
	return secret, nil
}

// sealed is the blob, taken apart.
type sealed struct {
	form               byte
	handle             handle
	public, ciphertext []byte
}

func (s sealed) encode() []byte {
	b := []byte{sealVersion, s.form}
	for _, part := range [][]byte{s.handle.encode(), s.public} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
		b = append(b, part...)
	}
	return append(b, s.ciphertext...)
}

func decodeSealed(b []byte) (sealed, error) {
	fail := fmt.Errorf("%w: not a secret sealed by a PKCS#11 token", token.ErrCorrupt)
	if len(b) < 2 || b[0] != sealVersion || b[1] != formECDH && b[1] != formRSA {
		return sealed{}, fail
	}
	s := sealed{form: b[1]}
	rest := b[2:]
	var parts [2][]byte
	for i := range parts {
		if len(rest) < 2 || int(binary.BigEndian.Uint16(rest)) > len(rest)-2 {
			return sealed{}, fail
		}
		n := int(binary.BigEndian.Uint16(rest))
		parts[i], rest = rest[2:2+n], rest[2+n:]
	}
	var err error
	if s.handle, err = decodeHandle(parts[0]); err != nil {
		return sealed{}, fail
	}
	s.public, s.ciphertext = parts[1], rest
	return s, nil
}
