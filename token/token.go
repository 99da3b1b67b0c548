// Package token is the vocabulary that the agent and its backends share: what a
// token is, what a key can do, and which errors say why it did not.
//
// A backend implements Token and, for each thing its device can do, one of the
// small optional interfaces; a Key likewise. What a value can do is what its
// type implements, no more: nothing here is ever implemented only to return
// "unsupported", and a Key is never wrapped. Capabilities finds out what there is.
//
// The package does no I/O, holds no state, checks no points (keyshare does) and
// imports the standard library only.
package token

import (
	"context"
	"crypto"
)

// State says whether a token can be used now.
type State string

// The states of a token.
const (
	StateReady    State = "ready"
	StateLocked   State = "locked"   // needs its PIN
	StateAbsent   State = "absent"   // not there, or does not answer
	StateReplaced State = "replaced" // another device, or a cleared one, is in its place
	// StateTouch says that an operation waits for somebody to touch the token.
	StateTouch State = "waiting for touch"
)

// Protection says what guards a private key, always truthfully.
type Protection string

// The protections a key can have.
const (
	// ProtectionToken is a key generated in the token and used only inside it.
	ProtectionToken Protection = "token"
	// ProtectionSealed is a key stored so that only the token opens it, used in the agent's memory.
	ProtectionSealed Protection = "sealed"
	// ProtectionSoftware is a key in a file. Chosen explicitly, never as a fallback.
	ProtectionSoftware Protection = "software"
)

// Info describes a token at one moment.
type Info struct {
	// Name is what users call the token: "soft", "tpm", a PKCS#11 URI, "piv:SERIAL".
	Name string
	// Kind is "software", "tpm", "piv" or "pkcs11".
	Kind string
	// Description is for people: manufacturer, model, firmware.
	Description string
	// Parallel is the number of operations the token runs at once, at least 1.
	Parallel int
	// State says whether it can be used now.
	State State
	// Touches is how many an operation waits for, in StateTouch; else 0.
	Touches int
	// Protection is what keys generated here get.
	Protection Protection
	// Algorithms are those the token can hold keys of, as probed.
	Algorithms []Algorithm
}

// Token is a place that holds private keys. Methods may be called from several
// goroutines at once; a backend serialises only what its device cannot do at once.
type Token interface {
	// Info describes the token. It does no device I/O and does not block.
	Info() Info
	// Open returns the key behind a handle that this token made.
	// Errors: ErrNotFound, ErrCorrupt (the handle does not open, or does not belong
	// to the given public key and associated data), ErrAbsent, ErrReplaced.
	Open(ctx context.Context, req OpenRequest) (Key, error)
	// Close releases the device. Keys opened before fail with ErrClosed afterwards.
	Close() error
}

// OpenRequest names a stored key. The identity fields are those it was made with:
// a backend that can bind them to what the device opens returns ErrCorrupt if they differ.
type OpenRequest struct {
	Handle     []byte    // as in Created.Handle
	Public     PublicKey // as in Created.Public
	Use        Use
	Associated []byte // as in GenerateRequest.Associated
	// Imported says that the key was outside of the token once, or was made in it by others. Of a key of which this is not
	// said, a token that can tell that it was returns ErrCorrupt.
	Imported bool
}

// Created is a key that a token now holds.
type Created struct {
	// Handle is opaque: what the token needs to find or open the key again. It may be
	// an encrypted blob of some kilobytes; it never holds a secret in the clear.
	Handle []byte
	// Public is the public key, as the token reports it.
	Public PublicKey
	// Protection is what guards this key.
	Protection Protection
	// Policy is what an adopted key asks of its user; zero where the token knows of no such things.
	Policy Policy
}

// GenerateRequest asks for a new key.
type GenerateRequest struct {
	Algorithm Algorithm
	// Use decides which operations the key will have; a device key gets one only.
	Use Use
	// Associated is bound to the key where the token can bind it: the same octets
	// must be given to Open. It is not secret.
	Associated []byte
	Policy     Policy
	Place      Place
	Auth       Auth
}

// Policy says what a key asks of its user. A token that cannot hold a key to a policy
// returns ErrUnsupported rather than a weaker key. The zero value asks for nothing beyond
// what the token always asks for.
type Policy struct {
	PIN   PINPolicy
	Touch TouchPolicy
}

// PINPolicy says when a key needs the token's PIN.
type PINPolicy string

// The PIN policies.
const (
	PINDefault PINPolicy = ""       // as the token does by itself
	PINNever   PINPolicy = "never"  // usable by whoever reaches the token
	PINOnce    PINPolicy = "once"   // after the token was unlocked
	PINAlways  PINPolicy = "always" // for every operation
)

// TouchPolicy says when a key needs a touch of the token.
type TouchPolicy string

// The touch policies.
const (
	TouchDefault TouchPolicy = ""
	TouchNever   TouchPolicy = "never"
	TouchCached  TouchPolicy = "cached" // one touch serves for some seconds
	TouchAlways  TouchPolicy = "always"
)

// Generator is a Token that makes keys inside itself.
type Generator interface {
	// Generate makes a key. Errors: ErrUnsupported (algorithm or use), ErrAuthNeeded, ErrAbsent.
	Generate(ctx context.Context, req GenerateRequest) (Created, error)
}

// ImportRequest puts an existing private key into a token. The token does not
// keep Private; the caller wipes it.
type ImportRequest struct {
	Private    *PrivateKey
	Use        Use
	Associated []byte
	Policy     Policy
	Place      Place
	Auth       Auth
}

// Importer is a Token that takes existing private keys.
type Importer interface {
	// Import stores a key. Errors: ErrUnsupported (algorithm or use), ErrBadKey, ErrAuthNeeded, ErrAbsent.
	Import(ctx context.Context, req ImportRequest) (Created, error)
}

// Deleter is a Token whose handles are objects in the device, which stay
// there until deleted. (Where a handle holds the whole encrypted key, forgetting it is enough.)
type Deleter interface {
	// Delete destroys the key. Deleting what is not there returns ErrNotFound.
	Delete(ctx context.Context, handle []byte) error
}

// Unlocker is a Token that is opened with a PIN or passphrase.
type Unlocker interface {
	// Unlock presents the PIN once. It does not keep pin, the caller wipes it.
	// Errors: ErrAuthWrong (as *AuthError with the tries left), ErrLockedOut.
	Unlock(ctx context.Context, pin []byte) error
}

// Sealer is a Token that encrypts so that only it can decrypt. It is how keys on curves
// that the token does not have are bound to it.
type Sealer interface {
	// Seal encrypts req.Secret, of any length, to this token. It does not keep Secret.
	// Errors: ErrUnsupported (policy), ErrAuthNeeded (also if no PIN is set and PINOnce is
	// asked for), ErrAbsent, ErrReplaced.
	Seal(ctx context.Context, req SealRequest) (Sealed, error)
	// Unseal returns the secret; the caller wipes it.
	// Errors: ErrCorrupt (blob or Associated not as sealed), *PCRError, ErrAuthNeeded,
	// ErrAuthWrong, ErrLockedOut, ErrAbsent, ErrReplaced.
	Unseal(ctx context.Context, req UnsealRequest) ([]byte, error)
}

// SealRequest asks to seal a secret.
type SealRequest struct {
	Secret []byte
	// Associated must be the same when unsealing. It is not secret.
	Associated []byte
	// PIN is PINNever (whoever reaches this token and the blob opens it) or PINOnce.
	PIN PINPolicy
	// PCRs is a selection such as "sha256:7,14", or empty. Only a TPM has these.
	PCRs string
	Auth Auth
}

// Guard says what opens a sealed secret.
type Guard string

// The guards, weakest first.
const (
	GuardMachine Guard = "machine" // reaching the token and the blob
	GuardPIN     Guard = "PIN"     // and its PIN
	GuardPCR     Guard = "PCR"     // and the platform's measured state
)

// Sealed is a sealed secret.
type Sealed struct {
	// Blob is opaque and holds no secret in the clear.
	Blob  []byte
	Guard Guard
	// Recovery opens the blob where its PCRs have changed. It is shown to the user once
	// and never stored; empty without PCRs. The caller wipes it.
	Recovery []byte
}

// UnsealRequest asks to unseal.
type UnsealRequest struct {
	Blob       []byte
	Associated []byte
	// Recovery is Sealed.Recovery, where the PCRs have changed.
	Recovery []byte
	Auth     Auth
}

// Auth is what a caller offers for a key or token that asks for a PIN. The zero
// value offers nothing. The backend does not keep PIN.
type Auth struct {
	PIN []byte
}

// Key is an opaque private key. What it can do beyond this is what its type
// implements: Signer, Agreer, PointAgreer, ScaledPointAgreer, Decrypter, Splitter.
// Methods may be called from several goroutines at once.
type Key interface {
	// Public returns the public key. It does no I/O.
	Public() PublicKey
}

// Signer is a Key that signs.
type Signer interface {
	Key
	// Sign signs req.Message, hashing it as req says.
	// The result is RFC 8032 octets (EdDSA), ASN.1 DER (ECDSA) or PKCS #1 octets (RSA).
	// One that a device made is verified by the public key before it is returned: a wrong one
	// can give the private key away. It is ErrFault. Nobody above does so again.
	// Errors: ErrUnsupported (scheme or hash), ErrAuthNeeded, ErrAbsent, ErrLockedOut, ErrFault.
	Sign(ctx context.Context, req SignRequest) ([]byte, error)
}

// Agreer is a Key that returns the x-coordinate (NIST curves, big endian) or
// u-coordinate (RFC 7748, little endian) of the agreement only.
type Agreer interface {
	Key
	// Agree multiplies the peer's point by the private scalar. Errors as AgreePoint.
	Agree(ctx context.Context, req AgreeRequest) ([]byte, error)
}

// PointAgreer is a Key that returns the whole point, so that shares can be added.
type PointAgreer interface {
	Key
	// AgreePoint multiplies the peer's point by the private scalar and returns the
	// point in the encoding of PublicKey.Octets.
	// Errors: ErrBadPoint, ErrAuthNeeded, ErrAbsent, ErrLockedOut, ErrFault.
	AgreePoint(ctx context.Context, req AgreeRequest) ([]byte, error)
}

// ScaledPointAgreer is a PointAgreer that multiplies by a coefficient at no extra cost.
type ScaledPointAgreer interface {
	PointAgreer
	// AgreeScaled returns (coefficient * private) * peer. The coefficient is a scalar
	// in the curve's encoding, 1 <= c < L. Errors as AgreePoint, and ErrBadRequest.
	AgreeScaled(ctx context.Context, req AgreeRequest, coefficient []byte) ([]byte, error)
}

// Decrypter is an RSA Key that decrypts.
type Decrypter interface {
	Key
	// Decrypt opens a ciphertext; the caller wipes the plaintext. ErrDecrypt is the one error for
	// an OAEP ciphertext that does not open, and for one that is not a number below the modulus in as many octets.
	// PKCS #1 v1.5 has no error for what is inside a ciphertext, as telling it would help to open others
	// (Bleichenbacher): where a plaintext of req.Length octets is not what it holds, the result
	// is as many octets that nobody can predict, the same each time.
	// Errors: ErrUnsupported (padding or hash), ErrBadRequest (members of another padding, Length),
	// ErrDecrypt, ErrAuthNeeded, ErrAbsent, ErrLockedOut, ErrFault.
	Decrypt(ctx context.Context, req DecryptRequest) ([]byte, error)
}

// Splitter is a Key that can be taken apart into shares and nothing else.
// Only keys of UseSplit implement it.
type Splitter interface {
	Key
	// Split draws a fresh splitting into n shares of which threshold are needed
	// (2 <= threshold <= n <= MaxShares). threshold == n splits additively, with X zero;
	// smaller thresholds use Shamir's scheme with X = 1, 2, ... n.
	// The caller owns the shares and wipes them. Errors: ErrBadRequest.
	Split(ctx context.Context, threshold, n int) ([]Share, error)
}

// MaxShares is the largest number of shares a key is split into.
const MaxShares = 255

// Share is one part of a split key. Wipe it after use.
type Share struct {
	X      int    // 0 for additive shares
	Scalar []byte // the curve's scalar encoding
	Public []byte // Scalar times the base point, encoded as PublicKey.Octets
}

// Wipe overwrites the secret.
func (s *Share) Wipe() { clear(s.Scalar) }

// AgreeRequest asks for an agreement.
type AgreeRequest struct {
	// Peer is the other side's point, in the encoding of PublicKey.Octets on the
	// key's own curve. The caller has checked it with keyshare.ParsePoint.
	Peer []byte
	Auth Auth
}

// Padding names how a plaintext was padded before RSA encryption.
type Padding uint8

// The paddings. The zero value is none.
const (
	// PaddingOAEP is RSAES-OAEP (RFC 8017, 7.1) with DecryptRequest.Hash, for MGF1 too, and Label.
	PaddingOAEP Padding = iota + 1
	// PaddingPKCS1v15 is RSAES-PKCS1-v1_5 (RFC 8017, 7.2) of a plaintext of DecryptRequest.Length octets.
	PaddingPKCS1v15
)

// DecryptRequest asks for RSA decryption.
type DecryptRequest struct {
	Padding Padding
	// Ciphertext has as many octets as the modulus.
	Ciphertext []byte
	Hash       crypto.Hash // with OAEP: SHA-1, SHA-256, SHA-384 or SHA-512
	Label      []byte      // with OAEP, often empty
	Length     int         // with PKCS #1 v1.5: from 1 to the modulus' octets less 11
	Auth       Auth
}

// Capabilities names what a Token or Key can do beyond the minimum, in a fixed
// order: "generate", "import", "adopt", "delete", "unlock", "set-pin", "lock", "seal", "attest", "sign",
// "agree", "agree-point", "decrypt", "split". It is the one place that looks.
func Capabilities(v any) []string {
	var out []string
	add := func(ok bool, name string) {
		if ok {
			out = append(out, name)
		}
	}
	_, ok := v.(Generator)
	add(ok, "generate")
	_, ok = v.(Importer)
	add(ok, "import")
	_, ok = v.(Adopter)
	add(ok, "adopt")
	_, ok = v.(Deleter)
	add(ok, "delete")
	_, ok = v.(Unlocker)
	add(ok, "unlock")
	_, ok = v.(PINSetter)
	add(ok, "set-pin")
	_, ok = v.(Locker)
	add(ok, "lock")
	_, ok = v.(Sealer)
	add(ok, "seal")
	_, ok = v.(Attester)
	add(ok, "attest")
	_, ok = v.(Signer)
	add(ok, "sign")
	_, ok = v.(Agreer)
	add(ok, "agree")
	_, ok = v.(PointAgreer)
	add(ok, "agree-point")
	_, ok = v.(Decrypter)
	add(ok, "decrypt")
	_, ok = v.(Splitter)
	add(ok, "split")
	return out
}
