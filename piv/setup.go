package piv

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// The secrets of a card as it comes from the factory.
const (
	factoryPIN = "123456"
	factoryPUK = "12345678"
)

func factoryManagementKey() []byte {
	return bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 3)
}

// SetupRequest asks for new secrets on a card. The caller wipes them.
type SetupRequest struct {
	// OldPIN and OldPUK are those that the card has. Empty means the factory's or, on a card that tells
	// that it is no more the factory's, the new one: an earlier run that was interrupted has set it.
	OldPIN, OldPUK []byte
	// PIN and PUK are new: 6 to 8 characters, not the factory's. They may be the old ones.
	PIN, PUK []byte
}

// Setup makes a card ready: a random management key, stored on the card so that the PIN opens it (as ykman
// does it), then a new PUK and PIN. If it is interrupted, wherever that is, the same request can be made
// again and ends well; on cards that do not tell what is the factory's (before firmware 5.3) the secrets that were
// set then are old ones. Afterwards no secret is the factory's, which is checked on cards that tell.
// The present management key must be the factory's, one stored on the card, or Options.ManagementKey.
// Errors: token.ErrBadRequest; *token.AuthError for the secret that was wrong; ErrLastTry;
// token.ErrLockedOut; token.ErrAbsent, token.ErrReplaced.
func (t *Token) Setup(ctx context.Context, req SetupRequest) error {
	if err := req.check(); err != nil {
		return fmt.Errorf("%s: set up: %w", Name(t.options.Serial), err)
	}
	_, err := do(ctx, t, "set up", func(ctx context.Context, s *session) (struct{}, error) {
		return struct{}{}, s.setup(ctx, req)
	})
	return err
}

func (r *SetupRequest) check() error {
	if string(r.PIN) == factoryPIN || string(r.PUK) == factoryPUK {
		return fmt.Errorf("%w: the factory's PIN or PUK, which everybody knows", token.ErrBadRequest)
	}
	for _, p := range [][]byte{r.PIN, r.PUK} {
		if len(p) < 6 || len(p) > 8 {
			return fmt.Errorf("%w: PIN and PUK have 6 to 8 characters", token.ErrBadRequest)
		}
	}
	return nil
}

func (s *session) setup(ctx context.Context, req SetupRequest) error {
	if err := s.sparePUK(ctx); err != nil {
		return err
	}
	if err := s.oldSecrets(ctx, &req); err != nil {
		return err
	}
	if err := s.present(ctx, req.OldPIN, keepLast); err != nil {
		return err
	}
	s.request.changed = true
	if err := s.newManagementKey(ctx); err != nil {
		return err
	}
	if err := s.Change(ctx, applet.PUK, req.OldPUK, req.PUK); err != nil {
		return err
	}
	change := func(ctx context.Context) error { return s.Change(ctx, applet.PIN, req.OldPIN, req.PIN) }
	if err := s.setPIN(ctx, req.PIN, change); err != nil {
		return err
	}
	return s.noDefaults(ctx)
}

// oldSecrets fills in the secrets that the card has, where the request leaves them open.
func (s *session) oldSecrets(ctx context.Context, req *SetupRequest) error {
	for _, secret := range []struct {
		reference    applet.Reference
		old          *[]byte
		factory, new []byte
	}{
		{applet.PIN, &req.OldPIN, []byte(factoryPIN), req.PIN},
		{applet.PUK, &req.OldPUK, []byte(factoryPUK), req.PUK},
	} {
		if len(*secret.old) != 0 {
			continue
		}
		*secret.old = secret.factory
		if !applet.HasMetadata(s.worker.version) {
			continue
		}
		c, err := s.Credential(ctx, secret.reference)
		if err != nil {
			return err
		}
		if !c.Default {
			*secret.old = secret.new
		}
	}
	return nil
}

// newManagementKey sets a new key. Before that it is stored beside the one in force, so that wherever it is
// interrupted the one in force is stored, if it is not the factory's or the caller's.
func (s *session) newManagementKey(ctx context.Context) error {
	stored, err := s.protected(ctx)
	if err != nil && !errors.Is(err, token.ErrAuthNeeded) && !errors.Is(err, apdu.ErrMalformed) {
		return err
	}
	defer clear(stored)
	keys, _ := storedKeys(stored) // what is no object holds none
	keys = append(keys, factoryManagementKey())
	if given := s.worker.token.options.ManagementKey; len(given) != 0 {
		keys = append(keys, given)
	}
	old, err := s.anyOf(ctx, keys)
	if err != nil {
		return err
	}
	key := make([]byte, applet.ManagementKeyLen(s.worker.version))
	defer clear(key)
	rand.Read(key)
	if err := s.storeKeys(ctx, old, key); err != nil {
		return err
	}
	if err := s.SetManagementKey(ctx, s.worker.version, key); err != nil {
		return err
	}
	if err := s.storeKeys(ctx, key, nil); err != nil {
		return err
	}
	return s.PutData(ctx, applet.ObjectAdmin, adminData())
}

// storeKeys stores a management key behind the PIN, and one that is to take its place.
func (s *session) storeKeys(ctx context.Context, key, next []byte) error {
	keys := make([]byte, 0, 2*(2+32)) // room, so that no copies stay behind
	keys = apdu.Append(keys, tagManagementKey, key)
	if next != nil {
		keys = apdu.Append(keys, tagNextKey, next)
	}
	defer clear(keys)
	object := apdu.Append(nil, tagProtected, keys)
	defer clear(object)
	return s.PutData(ctx, applet.ObjectProtected, object)
}

// The note that says where the management key is (ykman's "pivman data").
const (
	tagAdmin      apdu.Tag = 0x80
	tagAdminFlags apdu.Tag = 0x81
	flagStored             = 0x02
)

func adminData() []byte {
	return apdu.Append(nil, tagAdmin, apdu.Append(nil, tagAdminFlags, []byte{flagStored}))
}

// stored reports whether the note says that the management key is on the card.
func stored(note []byte) bool {
	b, err := apdu.Unwrap(note, tagAdmin)
	if err != nil {
		return false
	}
	objects, err := apdu.ParseAll(b)
	flags := objects[tagAdminFlags]
	return err == nil && len(flags) == 1 && flags[0]&flagStored != 0
}

func (s *session) noDefaults(ctx context.Context) error {
	if !applet.HasMetadata(s.worker.version) {
		return nil
	}
	for _, r := range []applet.Reference{applet.PIN, applet.PUK, applet.ManagementKey} {
		c, err := s.Credential(ctx, r)
		if err != nil {
			return err
		}
		if c.Default {
			return fmt.Errorf("%w: the %v is still the factory's", token.ErrFault, r)
		}
	}
	return nil
}
