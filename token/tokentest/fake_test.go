package tokentest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
)

func TestFake(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]FakeOptions{
		"whole points": {},
		"x only":       {XOnly: true, Algorithms: []token.Algorithm{token.X25519, token.P256}},
		"RSA":          {Algorithms: []token.Algorithm{token.RSA2048, token.P256}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := NewFake(o)
			Run(t, Harness{Open: func(*testing.T) token.Token { return f.Reopen() }})
		})
	}
}

func TestFakePINInRequests(t *testing.T) {
	t.Parallel()
	pin := []byte("123456")
	f := NewFake(FakeOptions{PIN: pin, PINAlways: true, Algorithms: []token.Algorithm{token.P256}})
	Run(t, Harness{
		Open: func(*testing.T) token.Token { return f.Reopen() },
		Auth: token.Auth{PIN: pin},
	})
}

func newSigner(t *testing.T, f *Fake, auth token.Auth) token.Signer {
	t.Helper()
	c, err := f.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Auth: auth})
	if err != nil {
		t.Fatal(err)
	}
	k, err := f.Open(t.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	return k.(token.Signer)
}

func TestFakeScriptedErrors(t *testing.T) {
	t.Parallel()
	lost, broken := errors.New("answer lost"), errors.New("broken")
	f := NewFake(FakeOptions{})
	generate := func() error {
		_, err := f.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign})
		return err
	}
	f.FailBefore(OpGenerate, broken, token.ErrAbsent)
	f.FailAfter(OpGenerate, lost)
	for i, want := range []struct {
		err  error
		keys int
	}{{broken, 0}, {token.ErrAbsent, 0}, {lost, 1}, {nil, 2}} {
		if err := generate(); !errors.Is(err, want.err) {
			t.Errorf("call %d: %v, want %v", i, err, want.err)
		}
		if n := f.Keys(); n != want.keys {
			t.Errorf("after call %d there are %d keys, want %d", i, n, want.keys)
		}
	}
	if n := f.Calls(OpGenerate); n != 4 {
		t.Errorf("%d calls, want 4", n)
	}
}

func TestFakeState(t *testing.T) {
	t.Parallel()
	f := NewFake(FakeOptions{})
	k := newSigner(t, f, token.Auth{})
	req := DefaultSignRequest(token.P256, nil)
	for _, c := range []struct {
		state token.State
		want  error
	}{{token.StateAbsent, token.ErrAbsent}, {token.StateReplaced, token.ErrReplaced}, {token.StateReady, nil}} {
		f.SetState(c.state)
		if got := f.Info().State; got != c.state {
			t.Errorf("state is %s, want %s", got, c.state)
		}
		if _, err := k.Sign(t.Context(), req); !errors.Is(err, c.want) {
			t.Errorf("Sign while %s: %v, want %v", c.state, err, c.want)
		}
	}
}

func TestFakeHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := NewFake(FakeOptions{})
		k := newSigner(t, f, token.Auth{})
		hold := f.Hold(OpSign)
		results := make(chan error, 3)
		for range 2 {
			go func() {
				_, err := k.Sign(t.Context(), DefaultSignRequest(token.P256, nil))
				results <- err
			}()
			<-hold.Entered()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := k.Sign(ctx, DefaultSignRequest(token.P256, nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("held Sign: %v, want DeadlineExceeded", err)
		}
		select {
		case err := <-results:
			t.Errorf("held Sign returned: %v", err)
		default:
		}
		hold.Release()
		hold.Release()
		for range 2 {
			if err := <-results; err != nil {
				t.Errorf("released Sign: %v", err)
			}
		}
		if n := f.MaxInFlight(); n != 3 {
			t.Errorf("most in flight is %d, want 3", n)
		}
	})
}

func TestFakePIN(t *testing.T) {
	t.Parallel()
	right, wrong := []byte("123456"), []byte("000000")
	f := NewFake(FakeOptions{PIN: right, Tries: 2, RetryAfter: time.Minute})
	k := newSigner(t, f, token.Auth{PIN: right})
	sign := func(pin []byte) error {
		req := DefaultSignRequest(token.P256, nil)
		req.Auth.PIN = pin
		_, err := k.Sign(t.Context(), req)
		return err
	}
	wantTries := func(err, reason error, tries int) {
		t.Helper()
		var auth *token.AuthError
		if !errors.As(err, &auth) || auth.Reason != reason || auth.TriesLeft != tries {
			t.Errorf("%v, want %v with %d tries left", err, reason, tries)
		}
	}
	wantState := func(want token.State) {
		t.Helper()
		if got := f.Info().State; got != want {
			t.Errorf("state is %s, want %s", got, want)
		}
	}
	wantState(token.StateLocked)
	wantTries(sign(nil), token.ErrAuthNeeded, 2)
	wantTries(sign(wrong), token.ErrAuthWrong, 1)
	if err := sign(right); err != nil {
		t.Error(err)
	}
	wantTries(f.Unlock(t.Context(), wrong), token.ErrAuthWrong, 1)
	if err := f.Unlock(t.Context(), right); err != nil {
		t.Error(err)
	}
	wantState(token.StateReady)
	if err := sign(nil); err != nil {
		t.Error(err)
	}
	f.SetState(token.StateLocked)
	wantTries(sign(wrong), token.ErrAuthWrong, 1)
	wantTries(sign(wrong), token.ErrAuthWrong, 0)
	var lockout *token.LockoutError
	if err := sign(right); !errors.As(err, &lockout) || lockout.RetryAfter != time.Minute {
		t.Errorf("%v, want a lockout of a minute", err)
	}
	f.ResetPIN()
	if err := sign(right); err != nil {
		t.Error(err)
	}
}

func TestFakeCapabilities(t *testing.T) {
	t.Parallel()
	want := []string{"generate", "import", "delete", "unlock"}
	if got := token.Capabilities(NewFake(FakeOptions{})); !slices.Equal(got, want) {
		t.Errorf("capabilities are %q, want %q", got, want)
	}
}
