package keyring

import (
	"context"
	"fmt"
	"strings"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// What Entry.State is when a key is not in order. A key that did not open has
// "unreadable: " and the reason.
const (
	StateUnverified  = "unverified"
	StateTokenAbsent = "token absent"

	stateUnreadable = "unreadable: "
)

// Entry is one key as it was when the entry was handed out. Its fields are for reading.
type Entry struct {
	Udf, UdfG2 string // G1 and G2, 28 characters with dashes; equal for NIST curves and RSA
	Algorithm  token.Algorithm
	Use        token.Use
	Token      string           // name of the token, of the first part of a composite
	Protection token.Protection // of a composite: that of its least protected part
	Guard      token.Guard      // of a sealed key: what opens it, of the same part
	Policy     token.Policy     // what it asks of its user, as far as the token tells or was asked for, of the first part
	PCRs       string           // the selection of a key sealed to PCRs, of the first part
	Label      string
	Public     token.PublicKey
	Imported   bool              // the key, or a part of it, was outside of the token once
	ShareTo    []token.PublicKey // of use split: who gets the shares, in their order
	Tags       []string          // of use sign-assertion: the tags of the bodies that it signs
	Release    token.Release     // of use decrypt: the widest form in which it gives clients what is encrypted to it
	// State is "" if the key is in order, StateUnverified until it was first opened,
	// StateTokenAbsent, or "unreadable: " and why.
	State string

	slot *slot
}

// Part describes one of the keys whose sum an entry is.
type Part struct {
	Token      string
	Protection token.Protection
	Public     token.PublicKey
	Imported   bool
	Use        token.Use // that of the key, or of this part alone
}

// Parts returns the parts of the key: one, or several if it is a composite.
func (e *Entry) Parts() []Part {
	out := make([]Part, len(e.slot.parts))
	for i, p := range e.slot.parts {
		out[i] = Part{Token: p.tokenName, Protection: p.protection, Public: p.public, Imported: p.imported, Use: p.use}
	}
	return out
}

// Protected says what guards the key, as listings have it: "token", "software",
// "sealed (machine)", "sealed+PIN" or "sealed+PCR".
func (e *Entry) Protected() string {
	switch {
	case e.Protection != token.ProtectionSealed:
		return string(e.Protection)
	case e.Guard == token.GuardPIN || e.Guard == token.GuardPCR:
		return string(e.Protection) + "+" + string(e.Guard)
	}
	return string(e.Protection) + " (" + string(token.GuardMachine) + ")"
}

// Operations returns what the key can do now, as the Operate messages call it without
// the prefix: "Sign", "KeyAgreement", "Decrypt", "Share"; keys of use ssh have "SSH".
// A key whose token is absent, or which did not open, can do nothing. For a key that was
// not opened yet the answer follows from its use.
func (e *Entry) Operations() []string {
	if e.State == StateTokenAbsent || strings.HasPrefix(e.State, stateUnreadable) {
		return nil
	}
	switch e.Use {
	case token.UseSSH:
		return []string{"SSH"}
	case token.UseSign:
		return []string{"Sign"}
	case token.UseSignAssertion:
		return []string{"SignEnvelope"}
	case token.UseAuthenticate:
		return []string{"Authenticate"}
	case token.UseAgree:
		return []string{"KeyAgreement", "Decrypt"}
	case token.UseDecrypt:
		return []string{"Decrypt"}
	case token.UseSplit:
		return []string{"Share"}
	}
	return nil
}

// Sign signs with a key that signs. What devices sign, they verify (token.Signer); the signature of a
// composite, whose scalars are added for it, is verified here: token.ErrFault if it is
// wrong. Errors otherwise as token.Signer, and ErrUse. Which use signs what is for the caller.
func (e *Entry) Sign(ctx context.Context, gate Gate, req token.SignRequest) ([]byte, error) {
	if !e.Use.Signs() {
		return nil, e.refuse("signing")
	}
	if len(e.slot.parts) > 1 {
		return e.signSum(ctx, gate, req)
	}
	var signature []byte
	err := e.do(ctx, gate, e.slot.parts[0], req.Auth, func(ctx context.Context, key token.Key, auth token.Auth) (err error) {
		signer, ok := key.(token.Signer)
		if !ok {
			return e.cannot("sign")
		}
		req.Auth = auth
		signature, err = signer.Sign(ctx, req)
		return err
	})
	return signature, err
}

// AgreePoint multiplies peer by the private key of use agree or decrypt and by the
// coefficient, which is 1 if nil. A composite does so with one part after another and
// adds the points. What a token returns is checked to be a point of the curve.
// Errors as token.PointAgreer, and ErrUse.
func (e *Entry) AgreePoint(ctx context.Context, gate Gate, peer *keyshare.Point, coefficient *keyshare.Scalar, auth token.Auth) (*keyshare.Point, error) {
	if !e.Use.Agrees() {
		return nil, e.refuse("key agreement")
	}
	if own := e.slot.point; own == nil || own.Curve() != peer.Curve() {
		return nil, fmt.Errorf("%w: peer is on %s, the key is %s", token.ErrBadRequest, peer.Curve(), e.Algorithm)
	}
	if len(e.slot.parts) == 1 {
		return e.agreePart(ctx, gate, e.slot.parts[0], agreement{peer, coefficient, auth})
	}
	points := make([]*keyshare.Point, len(e.slot.parts))
	for i, p := range e.slot.parts {
		point, err := e.agreePart(ctx, gate, p, agreement{peer, nil, auth})
		if err != nil {
			return nil, fmt.Errorf("part %d in token %q: %w", i+1, p.tokenName, err)
		}
		points[i] = point
	}
	sum, err := keyshare.Combine(points...)
	if err != nil {
		return nil, fmt.Errorf("add the parts: %w: %w", token.ErrFault, err)
	}
	return scale(sum, coefficient)
}

// agreement is what is asked of each part.
type agreement struct {
	peer        *keyshare.Point
	coefficient *keyshare.Scalar
	auth        token.Auth
}

func (e *Entry) agreePart(ctx context.Context, gate Gate, p *part, a agreement) (*keyshare.Point, error) {
	var point *keyshare.Point
	err := e.do(ctx, gate, p, a.auth, func(ctx context.Context, key token.Key, auth token.Auth) (err error) {
		a.auth = auth
		point, err = a.with(ctx, key)
		return err
	})
	return point, err
}

// pointMultiplier is a key that works on points that are checked already, so that nothing
// is encoded, decoded and checked twice on the way. Software keys have it.
type pointMultiplier interface {
	// MultiplyPoint returns (coefficient * private) * peer; a nil coefficient is 1.
	MultiplyPoint(ctx context.Context, peer *keyshare.Point, coefficient *keyshare.Scalar) (*keyshare.Point, error)
}

// with does the agreement in the best way that the key has.
func (a agreement) with(ctx context.Context, key token.Key) (*keyshare.Point, error) {
	if m, ok := key.(pointMultiplier); ok {
		return m.MultiplyPoint(ctx, a.peer, a.coefficient)
	}
	req := token.AgreeRequest{Peer: a.peer.Bytes(), Auth: a.auth}
	if s, ok := key.(token.ScaledPointAgreer); ok && a.coefficient != nil {
		c := a.coefficient.Bytes()
		defer clear(c)
		return a.parse(s.AgreeScaled(ctx, req, c))
	}
	agreer, ok := key.(token.PointAgreer)
	if !ok {
		return nil, fmt.Errorf("token does not return points: %w", token.ErrUnsupported)
	}
	point, err := a.parse(agreer.AgreePoint(ctx, req))
	if err != nil {
		return nil, err
	}
	return scale(point, a.coefficient)
}

// parse checks the point that a token returned.
func (a agreement) parse(octets []byte, err error) (*keyshare.Point, error) {
	if err != nil {
		return nil, err
	}
	point, err := keyshare.ParsePoint(a.peer.Curve(), octets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	return point, nil
}

func scale(point *keyshare.Point, coefficient *keyshare.Scalar) (*keyshare.Point, error) {
	if coefficient == nil {
		return point, nil
	}
	return keyshare.Agree(coefficient, point)
}

// Decrypt opens a ciphertext with an RSA key of use decrypt; the caller wipes the plaintext. Errors as
// token.Decrypter, and ErrUse.
func (e *Entry) Decrypt(ctx context.Context, gate Gate, req token.DecryptRequest) ([]byte, error) {
	if e.Use != token.UseDecrypt {
		return nil, e.refuse("decryption")
	}
	var plaintext []byte
	err := e.do(ctx, gate, e.slot.parts[0], req.Auth, func(ctx context.Context, key token.Key, auth token.Auth) (err error) {
		decrypter, ok := key.(token.Decrypter)
		if !ok {
			return e.cannot("decrypt RSA ciphertexts")
		}
		req.Auth = auth
		plaintext, err = decrypter.Decrypt(ctx, req)
		return err
	})
	return plaintext, err
}

// Split draws a fresh splitting of a key of use split into one share for each of ShareTo,
// in their order. The caller wipes the shares. Errors as token.Splitter, and ErrUse.
func (e *Entry) Split(ctx context.Context, gate Gate, threshold int) ([]token.Share, error) {
	if e.Use != token.UseSplit {
		return nil, e.refuse("splitting")
	}
	if len(e.slot.parts) > 1 {
		return nil, fmt.Errorf("split a composite key: %w", token.ErrUnsupported)
	}
	var shares []token.Share
	err := e.do(ctx, gate, e.slot.parts[0], token.Auth{}, func(ctx context.Context, key token.Key, _ token.Auth) (err error) {
		splitter, ok := key.(token.Splitter)
		if !ok {
			return e.cannot("be split")
		}
		shares, err = splitter.Split(ctx, threshold, len(e.ShareTo))
		return err
	})
	return shares, err
}

func (e *Entry) refuse(what string) error {
	return fmt.Errorf("%w %q does not permit %s", ErrUse, string(e.Use), what)
}

func (e *Entry) cannot(what string) error {
	return fmt.Errorf("this key in token %q cannot %s: %w", e.Token, what, token.ErrUnsupported)
}
