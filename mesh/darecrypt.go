package mesh

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// The payload encryptions.
const (
	// A256CBC is AES-256-CBC with PKCS #7 padding, which is what the Mesh publishes. It
	// does not protect integrity: only a signature over the ciphertext does.
	A256CBC = "A256CBC"
	// A256GCM is AES-256-GCM with a 12-octet nonce, the 16-octet tag appended and no
	// associated data: this agent's extension.
	A256GCM = "A256GCM"
)

const (
	baseSeedLen = 32 // octets of an unwrapped wmk
	saltLen     = 16
)

// Open decrypts the body with a base seed. There is one error, token.ErrDecrypt, for
// whatever is wrong with seed, padding, tag or payload digest; an encryption or digest
// that is not known is token.ErrUnsupported. The caller verifies signatures before.
func (e *Envelope) Open(seed []byte) ([]byte, error) { return e.open(seed, unpad) }

// OpenToParse is Open for a body that nobody signed, of which the caller says no more than that it is not
// well formed. Padding that is wrong is no error but stays in the plaintext, so that what parses it fails, after the
// same work: neither errors nor time tell who alters the ciphertext about the padding (Vaudenay, EUROCRYPT 2002).
func (e *Envelope) OpenToParse(seed []byte) ([]byte, error) { return e.open(seed, unpadIfGood) }

func (e *Envelope) open(seed []byte, unpad func([]byte) ([]byte, error)) ([]byte, error) {
	if _, err := e.payloadDigest(); errors.Is(err, token.ErrUnsupported) {
		return nil, err
	} else if err != nil {
		return nil, token.ErrDecrypt
	}
	key, iv, err := ContentKeys(seed, e.Header.Salt, e.Header.Encryption)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	if e.Header.Encryption == A256CBC {
		return openCBC(block, iv, e.Body, unpad)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	plaintext, err := aead.Open([]byte{}, iv, e.Body, nil)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	return plaintext, nil
}

// ContentKeys derives the key and the initial value of a payload from a base seed of 32
// octets: HKDF-SHA-256 with the envelope's salt and the info "encrypt" and "iv". The key has 32
// octets, the initial value 16 (A256CBC) or 12 (A256GCM).
// Errors: token.ErrUnsupported for another enc, token.ErrDecrypt for another seed length.
func ContentKeys(seed, salt []byte, enc string) (key, iv []byte, err error) {
	ivLen := 0
	switch enc {
	case A256CBC:
		ivLen = aes.BlockSize
	case A256GCM:
		ivLen = 12
	case "":
		return nil, nil, fmt.Errorf("the envelope is not encrypted: %w", token.ErrUnsupported)
	default:
		return nil, nil, fmt.Errorf("payload encryption %.16q: %w", enc, token.ErrUnsupported)
	}
	if len(seed) != baseSeedLen {
		return nil, nil, token.ErrDecrypt
	}
	if key, err = hkdf.Key(sha256.New, seed, salt, "encrypt", 32); err != nil {
		return nil, nil, fmt.Errorf("derive content key: %w", err)
	}
	if iv, err = hkdf.Key(sha256.New, seed, salt, "iv", ivLen); err != nil {
		return nil, nil, fmt.Errorf("derive content key: %w", err)
	}
	return key, iv, nil
}

// openCBC decrypts and removes padding.
func openCBC(block cipher.Block, iv, ciphertext []byte, unpad func([]byte) ([]byte, error)) ([]byte, error) {
	if len(ciphertext) == 0 || len(ciphertext)%aes.BlockSize != 0 {
		return nil, token.ErrDecrypt
	}
	out := make([]byte, len(ciphertext))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(out, ciphertext)
	return unpad(out)
}

// unpad removes PKCS #7 padding.
func unpad(out []byte) ([]byte, error) {
	pad, good := padding(out)
	if good == 0 {
		clear(out)
		return nil, token.ErrDecrypt
	}
	return out[:len(out)-pad], nil
}

// unpadIfGood leaves padding that is wrong where it is.
func unpadIfGood(out []byte) ([]byte, error) {
	pad, good := padding(out)
	return out[:len(out)-subtle.ConstantTimeSelect(good, pad, 0)], nil
}

// padding returns the length of PKCS #7 padding, and 1 if it is good, else 0. All of the last block is
// looked at, whatever it holds, and only the outcome is known afterwards.
func padding(out []byte) (pad, good int) {
	last := out[len(out)-aes.BlockSize:]
	pad = int(last[aes.BlockSize-1])
	good = subtle.ConstantTimeLessOrEq(1, pad) & subtle.ConstantTimeLessOrEq(pad, aes.BlockSize)
	for i, c := range last {
		inside := subtle.ConstantTimeLessOrEq(aes.BlockSize-i, pad)
		good &= subtle.ConstantTimeByteEq(c, byte(pad)) | (1 ^ inside)
	}
	return pad, good
}

func sealCBC(block cipher.Block, iv, plaintext []byte) []byte {
	pad := aes.BlockSize - len(plaintext)%aes.BlockSize
	out := make([]byte, len(plaintext)+pad)
	copy(out, plaintext)
	copy(out[len(plaintext):], bytes.Repeat([]byte{byte(pad)}, pad))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, out)
	return out
}

// keyEncryptionKey derives the key that wraps base seeds from an agreement:
// HKDF-SHA-512 without salt. All production data has empty info; one published example has "master".
func keyEncryptionKey(agreement *keyshare.Point, info string) ([]byte, error) {
	secret := agreement.SharedSecret()
	defer clear(secret)
	kek, err := hkdf.Key(sha512.New, secret, nil, info, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key encryption key: %w", err)
	}
	return kek, nil
}

// UnwrapSeed opens a recipient's wmk with the agreement of its epk and the key: 40 octets
// to 32. There is one error, token.ErrDecrypt. The caller wipes the seed.
func UnwrapSeed(agreement *keyshare.Point, info string, wrapped []byte) ([]byte, error) {
	if len(wrapped) != baseSeedLen+8 {
		return nil, token.ErrDecrypt
	}
	kek, err := keyEncryptionKey(agreement, info)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	seed, ok := unwrapKey(kek, wrapped)
	if !ok {
		return nil, token.ErrDecrypt
	}
	return seed, nil
}

// EncryptOptions says how to encrypt. The zero value is what the Mesh publishes.
type EncryptOptions struct {
	// Encryption is A256CBC if empty.
	Encryption string
	// ContentType goes into the header, in the clear, if not empty.
	ContentType string
	// Generation is that of the recipients' kid; G1 if zero.
	Generation Generation
}

// Encrypt encrypts to each of the recipients with A256CBC, as published.
// EncryptOptions.Encrypt has the details.
func Encrypt(rand io.Reader, plaintext []byte, contentType string, recipients ...token.PublicKey) (*Envelope, error) {
	return EncryptOptions{ContentType: contentType}.Encrypt(rand, plaintext, recipients...)
}

// Encrypt encrypts to each of the recipients, whose keys are on any of the seven curves:
// each gets an ephemeral key of its own. Errors: token.ErrUnsupported for an RSA recipient or an unknown
// encryption, token.ErrBadRequest for no recipient, keyshare's for a bad point.
func (o EncryptOptions) Encrypt(rand io.Reader, plaintext []byte, recipients ...token.PublicKey) (*Envelope, error) {
	e, seed, err := o.encrypt(rand, plaintext, recipients)
	clear(seed)
	return e, err
}

// encrypt returns the base seed too, which the caller wipes.
func (o EncryptOptions) encrypt(rand io.Reader, plaintext []byte, recipients []token.PublicKey) (*Envelope, []byte, error) {
	if len(recipients) == 0 {
		return nil, nil, fmt.Errorf("encrypt: no recipient: %w", token.ErrBadRequest)
	}
	if o.Encryption == "" {
		o.Encryption = A256CBC
	}
	if o.Generation == 0 {
		o.Generation = G1
	}
	random := make([]byte, baseSeedLen+saltLen)
	if _, err := io.ReadFull(rand, random); err != nil {
		return nil, nil, fmt.Errorf("encrypt: %w", err)
	}
	seed, salt := random[:baseSeedLen:baseSeedLen], bytes.Clone(random[baseSeedLen:])
	e := &Envelope{Header: Header{Encryption: o.Encryption, Salt: salt}}
	err := e.seal(seed, plaintext)
	for _, pub := range recipients {
		if err != nil {
			break
		}
		var r Recipient
		if r, err = newRecipient(rand, seed, pub, o.Generation); err != nil {
			err = fmt.Errorf("to %s key: %w", pub.Algorithm, err)
		}
		e.Header.Recipients = append(e.Header.Recipients, r)
	}
	if err == nil && o.ContentType != "" {
		err = e.Header.setMeta(ContentMeta{ContentType: o.ContentType})
	}
	if err != nil {
		clear(seed)
		return nil, nil, fmt.Errorf("encrypt: %w", err)
	}
	return e, seed, nil
}

// seal sets the body.
func (e *Envelope) seal(seed, plaintext []byte) error {
	key, iv, err := ContentKeys(seed, e.Header.Salt, e.Header.Encryption)
	if err != nil {
		return err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	if e.Header.Encryption == A256CBC {
		e.Body = sealCBC(block, iv, plaintext)
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	e.Body = aead.Seal(nil, iv, plaintext, nil)
	return nil
}

func newRecipient(rand io.Reader, seed []byte, pub token.PublicKey, g Generation) (Recipient, error) {
	curve, ok := CurveOf(pub.Algorithm)
	if !ok {
		return Recipient{}, token.ErrUnsupported
	}
	peer, err := keyshare.ParsePoint(curve, pub.Octets)
	if err != nil {
		return Recipient{}, err
	}
	ephemeral, err := keyshare.RandomScalar(curve, rand)
	if err != nil {
		return Recipient{}, err
	}
	defer ephemeral.Wipe()
	agreement, err := keyshare.Agree(ephemeral, peer)
	if err != nil {
		return Recipient{}, err
	}
	kek, err := keyEncryptionKey(agreement, "")
	if err != nil {
		return Recipient{}, err
	}
	defer clear(kek)
	wrapped, err := wrapKey(kek, seed)
	if err != nil {
		return Recipient{}, err
	}
	udf, err := Fingerprint(pub, g)
	if err != nil {
		return Recipient{}, err
	}
	epk := ordinaryParameters(token.PublicKey{Algorithm: pub.Algorithm, Octets: ephemeral.Public().Bytes()})
	return Recipient{KeyID: udf, EphemeralKey: epk, WrappedKey: wrapped}, nil
}

// EncryptShare puts one share of a split key into an envelope that only recipient opens:
// a KeyData with the private scalar under the curve's name with z, and its public key.
func EncryptShare(rand io.Reader, a token.Algorithm, share token.Share, recipient token.PublicKey) (*Envelope, error) {
	payload, err := MarshalKeyDataScalar(a, share.Scalar)
	if err != nil {
		return nil, fmt.Errorf("encrypt share: %w", err)
	}
	defer clear(payload)
	return Encrypt(rand, payload, ContentTypeKeyData, recipient)
}
