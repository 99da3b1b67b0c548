package main

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestSayPINs says once that this process waits for a PIN, and nothing of others.
func TestSayPINs(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app{world: world{stderr: &out}}
	waits := func(pids ...int) *mesh.PromptInfo {
		p := &mesh.PromptInfo{Program: "/usr/bin/pinentry"}
		for _, pid := range pids {
			p.Waiting = append(p.Waiting, mesh.PromptWait{Token: "piv:1", PID: pid})
		}
		return p
	}
	said := map[string]bool{}
	for _, look := range []*mesh.PromptInfo{nil, waits(), waits(1), waits(os.Getpid(), 1, os.Getpid()), waits(os.Getpid()), waits(1), waits(os.Getpid())} {
		said = a.sayPINs(look, said)
	}
	const want = "/usr/bin/pinentry asks for the PIN of piv:1.\n/usr/bin/pinentry asks for the PIN of piv:1.\n"
	if out.String() != want {
		t.Errorf("said:\n%swant:\n%s", out.String(), want)
	}
}

// TestWatchTouch has an agent whose card waits for two touches, is used, and waits again.
func TestWatchTouch(t *testing.T) {
	t.Parallel()
	waits := func(touches int) []mesh.TokenInfo {
		return []mesh.TokenInfo{{Name: "soft", State: string(token.StateReady)}, {Name: "piv:1", State: string(token.StateTouch), Touches: touches}}
	}
	looks := [][]mesh.TokenInfo{nil, waits(2), waits(2), waits(1), {{Name: "piv:1", State: string(token.StateReady)}}, waits(1)}
	ctx, cancel := context.WithCancel(t.Context())
	ticks := make(chan time.Time, len(looks)+1)
	for range len(looks) + 1 {
		ticks <- time.Time{}
	}
	var out bytes.Buffer
	a := &app{world: world{stderr: &out}}
	a.watchWaits(ctx, ticks, func() *mesh.StatusResponse {
		if len(looks) == 0 {
			cancel()
			return &mesh.StatusResponse{Tokens: waits(2)} // too late
		}
		next := looks[0]
		looks = looks[1:]
		return &mesh.StatusResponse{Tokens: next}
	})
	const want = "piv:1 is waiting for touch, 2 times.\npiv:1 is waiting for touch.\npiv:1 is waiting for touch.\n"
	if out.String() != want {
		t.Errorf("said:\n%swant:\n%s", out.String(), want)
	}
}
