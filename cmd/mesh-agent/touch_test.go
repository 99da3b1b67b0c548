package main

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

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
	a.watchTouch(ctx, ticks, func() []mesh.TokenInfo {
		if len(looks) == 0 {
			cancel()
			return waits(2) // too late
		}
		next := looks[0]
		looks = looks[1:]
		return next
	})
	const want = "piv:1 is waiting for touch, 2 times.\npiv:1 is waiting for touch.\npiv:1 is waiting for touch.\n"
	if out.String() != want {
		t.Errorf("said:\n%swant:\n%s", out.String(), want)
	}
}
