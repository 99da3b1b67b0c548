package piv

import (
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestList lists cards among readers of which one is empty, one has a card that never answers, one a card in another
// program's transaction, and one a card without PIV: none of them keeps the others from being listed, nor is one
// disturbed.
func TestList(t *testing.T) {
	t.Parallel()
	d := pivtest.StartDaemon(t)
	d.AddReader("Empty 00 00", nil)
	silent := d.AddReader("Silent Yubikey 01 00", pivtest.NewCard(pivtest.Config{Serial: 1}))
	silent.Silence()
	held := pivtest.NewCard(pivtest.Config{Serial: 2})
	d.AddReader("Held Yubikey 02 00", held)
	other := pivtest.NewCard(pivtest.Config{Serial: 3})
	other.OnAPDU(func([]byte, func([]byte) []byte) []byte { return []byte{0x6A, 0x82} })
	d.AddReader("Other card 03 00", other)
	good := d.AddReader("Yubico YubiKey 04 00", pivtest.NewCard(pivtest.Config{Serial: 4}))

	client, err := pcsc.Dial(t.Context(), d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	card, err := client.Connect(t.Context(), "Held Yubikey 02 00")
	if err == nil {
		err = card.Begin(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	found, err := Survey(t.Context(), d.Socket)
	if err != nil || len(found) != 3 || found[2] != (Found{Serial: 4, Firmware: "5.7.1", Reader: good.Name()}) {
		t.Fatalf("found %v, %v", found, err)
	}
	for i, reason := range []error{ErrSilent, ErrBusy} {
		wantAll(t, found[i].Reader, found[i].Err, token.ErrAbsent, reason)
		if found[i].Serial != 0 || found[i].Firmware != "" {
			t.Errorf("found %v", found[i])
		}
	}
	if found, err := List(t.Context(), d.Socket); err != nil || len(found) != 1 || found[0].Serial != 4 {
		t.Errorf("listed %v, %v", found, err)
	}
	if err := card.End(t.Context(), pcsc.LeaveCard); err != nil {
		t.Errorf("the other program's transaction: %v", err)
	}
	if !good.AwaitFree(10 * time.Second) {
		t.Error("a card is held")
	}
	silent.Speak()
}

// TestOpenSilent opens the token of a card that does not answer: that takes seconds and is no error.
func TestOpenSilent(t *testing.T) {
	t.Parallel()
	b := &bench{card: pivtest.NewCard(pivtest.Config{}), daemon: pivtest.StartDaemon(t)}
	b.reader = b.daemon.AddReader("Yubico YubiKey OTP+FIDO+CCID 00 00", b.card)
	b.reader.Silence()
	start := time.Now()
	b.token = b.open(t, Options{})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("opening took %v", took)
	}
	b.await(t, token.StateAbsent)
	b.reader.Speak()
	wantTries(t, "unlock when it answers", b.token.Unlock(t.Context(), []byte("000000")), token.ErrAuthWrong, 2)
	b.await(t, token.StateLocked)
}
