package device

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func TestRevoke(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, d := newAccount(t, g), newDevice(t, g, nil)
		entry := a.connect(t, d, Rights{Common: true})
		e, err := a.connector().Revoke(t.Context(), entry)
		if err != nil {
			t.Fatal(err)
		}
		named, err := VerifyRevocation(e, a.profile, d.profile)
		if err != nil {
			t.Fatal(err)
		}

		// What connected the device is not taken again; the account's own profile is.
		h := (&History{}).Adopt(entry, nil).Revoke(entry.ProfileUser, named...)
		_, err = h.Check(entry, nil)
		wantErr(t, "the entry that was revoked", err, ErrSuperseded)
		anew := a.connect(t, d, Rights{})
		if order, err := h.Check(anew, nil); err != nil || order != OrderUnknown {
			t.Errorf("a new entry: %v, %v", order, err)
		}
		// The same for a device that had lost its history.
		_, err = (&History{}).Revoke(entry.ProfileUser, named...).Check(entry, nil)
		wantErr(t, "the entry without history", err, ErrSuperseded)
	})
}

func TestRevocationRefused(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, foreign, d, other := newAccount(t, g), newAccount(t, g), newDevice(t, g, nil), newDevice(t, g, nil)
		entry := a.connect(t, d, Rights{})
		e, err := a.connector().Revoke(t.Context(), entry)
		if err != nil {
			t.Fatal(err)
		}
		changed := *e
		changed.Body = append([]byte(" "), e.Body...)
		byForeign, err := foreign.connector().Revoke(t.Context(), entry)
		if err != nil {
			t.Fatal(err)
		}
		unsigned := &mesh.Envelope{Body: e.Body}
		for name, c := range map[string]struct {
			e *mesh.Envelope
			a *someAccount
			d *someDevice
		}{
			"another device":   {e, a, other},
			"another account":  {e, foreign, d},
			"foreign signer":   {byForeign, a, d},
			"changed":          {&changed, a, d},
			"not signed":       {unsigned, a, d},
			"not a revocation": {a.signed(t, []byte(`{"ProfileUser":{}}`)), a, d},
			"short digest":     {a.signed(t, named(t, a, d, make(mesh.Binary, 31))), a, d},
			"too many digests": {a.signed(t, named(t, a, d, numbered(0, 65)...)), a, d},
			"unknown body":     {a.signed(t, []byte(`{"DeviceRevocation":[]}`)), a, d},
		} {
			_, err := VerifyRevocation(c.e, c.a.profile, c.d.profile)
			wantErr(t, name, err, ErrRevocation)
		}
	})
}

// named is the body of a revocation that names digests.
func named(t *testing.T, a *someAccount, d *someDevice, digests ...mesh.Binary) []byte {
	t.Helper()
	return must(strictjson.Marshal(map[string]wireRevocation{TagDeviceRevocation: {
		DeviceUdf: d.profile.Name(), ProfileUdf: a.profile.Name(), Superseded: digests,
	}}))
}

// TestFullHistory takes no other connection where one more cannot be remembered. The one in use stays, and can be ended.
func TestFullHistory(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	entry := a.connect(t, d, Rights{})
	h := (&History{Superseded: DigestSet{}.Add(numbered(0, MaxDigests-4)...)}).Adopt(entry, nil)
	_, err := h.Check(a.connect(t, d, Rights{}), nil)
	wantErr(t, "another connection", err, ErrHistoryFull)
	order, err := h.Check(entry, nil)
	if err != nil || order != OrderSame {
		t.Errorf("the connection in use: %v, %v", order, err)
	}
	ended := h.Revoke(entry.ProfileUser, entry.connectionDigests()...)
	same(t, "remembered", ended.AllSuperseded(entry.connectionDigests()), true)
	_, err = ended.Check(a.connect(t, d, Rights{}), nil)
	wantErr(t, "after its end", err, ErrHistoryFull)
}

// TestOldRevocation has one that was replayed, and one of a connection that never arrived.
func TestOldRevocation(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	first, second, third := a.connect(t, d, Rights{}), a.connect(t, d, Rights{}), a.connect(t, d, Rights{})
	h := (&History{}).Adopt(first, nil).Adopt(second, nil)
	for name, c := range map[string]struct {
		named []mesh.Binary
		old   bool
	}{
		"replaced":      {first.connectionDigests(), true},
		"in use":        {second.connectionDigests(), false},
		"never arrived": {third.connectionDigests(), false},
		"of nothing":    {nil, true},
	} {
		if got := h.AllSuperseded(c.named); got != c.old {
			t.Errorf("%s: %t, want %t", name, got, c.old)
		}
	}
}
