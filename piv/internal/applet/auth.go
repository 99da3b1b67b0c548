package applet

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/token"
)

// The length of a PIN or PUK on the card; shorter ones are padded.
const (
	pinLen    = 8
	minPINLen = 6 // SP 800-73-4 Part 2, 2.4.3
	pinPad    = 0xFF
)

// Verify presents the PIN once. Errors: token.ErrBadRequest, before the card is asked;
// *token.AuthError with the tries left; token.ErrLockedOut.
func (a Applet) Verify(ctx context.Context, pin []byte) error {
	b, err := padPIN(PIN, pin)
	if err != nil {
		return err
	}
	defer clear(b)
	_, err = a.send(ctx, insVerify, 0, refPIN, b)
	return wrong(PIN, "verify PIN", err)
}

// Logout makes the card forget that the PIN was verified: by VERIFY with P1 FF (Part 2, 3.2.1) or,
// where the card does not have that, by selecting another application and this one again.
func (a Applet) Logout(ctx context.Context) error {
	_, err := a.send(ctx, insVerify, 0xFF, refPIN, nil)
	var status apdu.Status
	if !errors.As(err, &status) {
		return explain("log out", err)
	}
	if _, err := a.send(ctx, insSelect, 4, 0, otpAID()); err != nil && !errors.As(err, &status) {
		return explain("log out", err)
	}
	return a.Select(ctx)
}

// PINStatus tells whether the PIN was verified since the application was selected and, if
// not, how many tries are left: token.TriesUnknown otherwise.
func (a Applet) PINStatus(ctx context.Context) (verified bool, tries int, err error) {
	_, err = a.send(ctx, insVerify, 0, refPIN, nil)
	var status apdu.Status
	switch {
	case err == nil:
		return true, token.TriesUnknown, nil
	case !errors.As(err, &status):
		return false, 0, err
	case status == apdu.Blocked:
		return false, 0, nil
	}
	if tries, ok := status.Tries(); ok {
		return false, tries, nil
	}
	return false, 0, fmt.Errorf("read tries of PIN: %w", err)
}

// Change changes the PIN or PUK. Errors as Verify; token.ErrBadRequest also if the card does not take the new one.
func (a Applet) Change(ctx context.Context, r Reference, old, new []byte) error {
	return a.replace(ctx, insChangeReference, r, r, old, new)
}

// Unblock sets a new PIN by the PUK. Errors as Verify, about the PUK.
func (a Applet) Unblock(ctx context.Context, puk, new []byte) error {
	return a.replace(ctx, insResetRetry, PIN, PUK, puk, new)
}

func (a Applet) replace(ctx context.Context, ins byte, target, proof Reference, old, new []byte) error {
	b, err := padPIN(proof, old)
	if err != nil {
		return err
	}
	defer clear(b)
	c, err := padPIN(target, new)
	if err != nil {
		return err
	}
	defer clear(c)
	both := append(append(make([]byte, 0, 2*pinLen), b...), c...)
	defer clear(both)
	_, err = a.send(ctx, ins, 0, byte(target), both)
	if errors.Is(err, apdu.BadData) || errors.Is(err, apdu.ConditionsOfUse) {
		// 6A80: characters that it does not have; 6985: too simple (ykman, "PIN complexity")
		return fmt.Errorf("change %v: %w: the card does not take this one: %w", target, token.ErrBadRequest, err)
	}
	return wrong(proof, "change "+target.String(), err)
}

func padPIN(r Reference, pin []byte) ([]byte, error) {
	if len(pin) < minPINLen || len(pin) > pinLen {
		return nil, fmt.Errorf("%w: a %v has %d to %d characters", token.ErrBadRequest, r, minPINLen, pinLen)
	}
	b := append(make([]byte, 0, pinLen), pin...)
	for len(b) < pinLen {
		b = append(b, pinPad)
	}
	return b, nil
}

// wrong makes a refusal of a PIN or PUK an error of the vocabulary.
func wrong(r Reference, what string, err error) error {
	var status apdu.Status
	if err == nil || !errors.As(err, &status) {
		return explain(what, err)
	}
	tries, ok := status.Tries()
	switch {
	case status == apdu.Blocked, ok && tries == 0:
		return fmt.Errorf("%s: the %v is blocked: %w: %w", what, r, token.ErrLockedOut, err)
	case ok:
		return fmt.Errorf("%s: %w: %w", what, &token.AuthError{Reason: token.ErrAuthWrong, Kind: r.String(), TriesLeft: tries}, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// SetRetries sets how many wrong tries PIN and PUK have, and sets both to their defaults.
// Management key and PIN must have been presented.
func (a Applet) SetRetries(ctx context.Context, pin, puk byte) error {
	_, err := a.send(ctx, insSetRetries, pin, puk, nil)
	return explain("set retries", err)
}

// The algorithms of management keys.
const (
	managementTDES   = 0x03
	managementAES128 = 0x08
	managementAES192 = 0x0A
	managementAES256 = 0x0C
)

// managementCipher returns the cipher of a management key by the algorithm of the card.
func managementCipher(algorithm byte, key []byte) (cipher.Block, error) {
	length := map[byte]int{managementTDES: 24, managementAES128: 16, managementAES192: 24, managementAES256: 32}[algorithm]
	switch {
	case length == 0:
		return nil, fmt.Errorf("management key of algorithm %02x: %w", algorithm, token.ErrUnsupported)
	case len(key) != length:
		return nil, fmt.Errorf("%w: management key of %d octets, the card's has %d", token.ErrBadRequest, len(key), length)
	case algorithm == managementTDES:
		return des.NewTripleDESCipher(key)
	}
	return aes.NewCipher(key)
}

// managementAlgorithm asks the card; before version 5.3 it is always TDES.
func (a Applet) managementAlgorithm(ctx context.Context, v Version) (byte, error) {
	if !HasMetadata(v) {
		return managementTDES, nil
	}
	c, err := a.Credential(ctx, ManagementKey)
	return c.Algorithm, err
}

// AuthenticateManagement proves to know the management key, and has the card prove it too
// (Part 2, 3.2.4, mutual). Errors: *token.AuthError if the key is wrong; token.ErrFault if the
// card does not know it.
func (a Applet) AuthenticateManagement(ctx context.Context, v Version, key []byte) error {
	algorithm, err := a.managementAlgorithm(ctx, v)
	if err != nil {
		return err
	}
	block, err := managementCipher(algorithm, key)
	if err != nil {
		return err
	}
	t, err := a.authenticate(ctx, algorithm, refManagement, apdu.Append(nil, tagWitness, nil))
	if err != nil {
		return explain("present management key", err)
	}
	witness, err := t.one(tagWitness)
	if err != nil || len(witness) != block.BlockSize() {
		return fmt.Errorf("present management key: witness of %d octets: %w", len(witness), errors.Join(apdu.ErrMalformed, err))
	}
	block.Decrypt(witness, witness)
	challenge := make([]byte, block.BlockSize())
	rand.Read(challenge)
	t, err = a.authenticate(ctx, algorithm, refManagement,
		apdu.Append(apdu.Append(nil, tagWitness, witness), tagChallenge, challenge))
	var status apdu.Status
	if errors.As(err, &status) {
		return fmt.Errorf("present management key: %w: %w",
			&token.AuthError{Reason: token.ErrAuthWrong, Kind: ManagementKey.String(), TriesLeft: token.TriesUnknown}, err)
	}
	if err != nil {
		return explain("present management key", err)
	}
	response, err := t.one(tagResponse)
	if err != nil {
		return explain("present management key", err)
	}
	block.Encrypt(challenge, challenge)
	if subtle.ConstantTimeCompare(response, challenge) != 1 {
		return fmt.Errorf("present management key: %w: the card does not know it", token.ErrFault)
	}
	return nil
}

// ManagementKeyLen returns the length of a new management key for a card of this version.
func ManagementKeyLen(v Version) int {
	if v.AtLeast(5, 4) {
		return 32
	}
	return 24
}

// SetManagementKey sets a key of ManagementKeyLen octets: AES-256, or TDES before version 5.4.
// The old one must have been presented.
func (a Applet) SetManagementKey(ctx context.Context, v Version, key []byte) error {
	algorithm := byte(managementTDES)
	if v.AtLeast(5, 4) {
		algorithm = managementAES256
	}
	if _, err := managementCipher(algorithm, key); err != nil {
		return err
	}
	b := append(make([]byte, 0, 3+len(key)), algorithm, refManagement, byte(len(key)))
	b = append(b, key...)
	defer clear(b)
	_, err := a.send(ctx, insSetManagement, 0xFF, 0xFF, b)
	return explain("set management key", err)
}
