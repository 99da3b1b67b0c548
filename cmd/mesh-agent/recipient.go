package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// recipients returns the keys to encrypt to: each is named by a file, or by the UDF of a key of
// the agent, of an account that it administers, or of a device of that account.
func (a *app) recipients(ctx context.Context, names []string) ([]token.PublicKey, error) {
	var keys []token.PublicKey
	for _, name := range names {
		key, err := a.recipient(ctx, name)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func (a *app) recipient(ctx context.Context, name string) (token.PublicKey, error) {
	if isKeyName(name) {
		return a.recipientNamed(ctx, name)
	}
	data, err := a.read(name, maxDocument)
	if err != nil {
		return token.PublicKey{}, err
	}
	key, err := a.recipientIn(ctx, strictjson.EscapeControls(data))
	if err != nil {
		err = fmt.Errorf("read recipient %s: %w", title(name), err)
		var advised hintError
		if errors.Is(err, token.ErrBadPoint) || errors.As(err, &advised) {
			return token.PublicKey{}, err
		}
		return token.PublicKey{}, hint(err, "give what `mesh-agent key public UDF`, `account profile` or `device profile --connection` prints")
	}
	return key, nil
}

// isKeyName reports whether a word is a UDF and not the name of a file.
func isKeyName(name string) bool {
	id, err := mesh.NormalizeKeyID(name)
	if err != nil || len(id) < 28 {
		return false
	}
	_, err = os.Stat(name)
	return err != nil
}

// recipientIn reads a public key, the profile of an account, a connection, or a
// CatalogedDevice. Profiles are validated; that a connection is one of the account that you mean, you know.
func (a *app) recipientIn(ctx context.Context, data strictjson.Value) (token.PublicKey, error) {
	now := time.Now()
	if data.Kind() != '[' {
		if entry, err := device.ParseCatalogedDevice(data); err == nil && entry.ConnectionDevice != nil {
			found, err := verifier{}.catalog(entry, nil)
			if err != nil {
				return token.PublicKey{}, err
			}
			g, err := mesh.ParseGeneration(found.Generation)
			if err != nil {
				return token.PublicKey{}, err
			}
			return connectionKey(entry.ConnectionDevice, g, now)
		}
		return mesh.ParseKeyDataPublic(data)
	}
	e, err := mesh.ParseEnvelope(data)
	if err != nil {
		return token.PublicKey{}, err
	}
	tagged, err := mesh.DecodeBody(e.Body)
	if err != nil {
		return token.PublicKey{}, err
	}
	switch tagged.Tag {
	case device.TagProfileUser, device.TagProfileGroup:
		p, err := device.ParseProfileUser(e, now)
		if err != nil {
			return token.PublicKey{}, err
		}
		return p.Encryption, nil
	case device.TagProfileDevice, device.TagProfileHost:
		p, err := device.ParseProfileDevice(e, now)
		if err != nil {
			return token.PublicKey{}, err
		}
		return a.recipientNamed(ctx, p.Name())
	}
	return connectionKey(e, generationOf(e), now)
}

// generationOf is that of an envelope's first signature.
func generationOf(e *mesh.Envelope) mesh.Generation {
	if e.Trailer != nil && len(e.Trailer.Signatures) > 0 {
		if g, ok := e.Trailer.Signatures[0].Generation(); ok {
			return g
		}
	}
	return mesh.G1
}

func connectionKey(e *mesh.Envelope, g mesh.Generation, now time.Time) (token.PublicKey, error) {
	c, err := readConnection(e, g, now)
	if err != nil {
		return token.PublicKey{}, err
	}
	if c.Encryption == nil {
		return token.PublicKey{}, fmt.Errorf("a %s has no key for encryption", c.Tag)
	}
	return *c.Encryption, nil
}

// recipientNamed finds the key for encryption of a name that the agent knows. A device's is the one of
// its connection: the base key of its profile opens nothing but activations.
func (a *app) recipientNamed(ctx context.Context, name string) (key token.PublicKey, err error) {
	err = a.with(ctx, func(conn *client.Client) error {
		info, err := conn.KeyShow(ctx, name)
		if err == nil {
			if !slices.Contains(info.Operations, "Decrypt") {
				return fmt.Errorf("key %s has use %s and opens nothing that is encrypted to it", name, info.Use)
			}
			key, err = info.PublicKey.PublicKey()
			return err
		}
		var status *client.StatusError
		if !errors.As(err, &status) || status.Status != 404 {
			return err
		}
		return a.knownIdentity(ctx, conn, name, &key)
	})
	return key, err
}

// deviceKey is the combined key of a device that is administered here.
func deviceKey(ctx context.Context, conn *client.Client, account, name string) (token.PublicKey, error) {
	accounts, err := conn.AccountList(ctx, mesh.AccountListRequest{Account: account, Device: name})
	if err != nil {
		return token.PublicKey{}, err
	}
	return mesh.ParseKeyDataPublic(accounts[0].Devices[0].Encryption)
}

func (a *app) knownIdentity(ctx context.Context, conn *client.Client, name string, key *token.PublicKey) error {
	accounts, err := conn.AccountList(ctx, mesh.AccountListRequest{})
	if err != nil {
		return err
	}
	for _, account := range accounts {
		if sameKey(account.Udf, name) {
			*key, err = a.recipientIn(ctx, account.Profile)
			return err
		}
		for _, d := range account.Devices {
			if sameKey(d.Udf, name) && !d.Revoked {
				*key, err = deviceKey(ctx, conn, account.Udf, d.Udf)
				return err
			}
		}
	}
	if d, err := conn.DeviceShow(ctx); err == nil && sameKey(d.Udf, name) && len(d.Accounts) > 0 {
		*key, err = a.recipientIn(ctx, d.Accounts[0].ConnectionDevice)
		return err
	}
	return hint(fmt.Errorf("the agent knows no key, account or connected device %s", name),
		"give the device's connection or its entry in the account's catalog: mesh-agent device profile --connection")
}
