package piv

import (
	"context"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
)

// Found is a PIV card that is plugged in.
type Found struct {
	Serial   uint32
	Firmware string // "5.7.1"
	Reader   string
}

// List returns the PIV cards with serial numbers that are plugged in. Others, those that another
// program holds, and those that do not answer for two seconds are left out. An empty socket is that of Options. Errors: token.ErrAbsent if
// pcscd does not run.
func List(ctx context.Context, socket string) ([]Found, error) {
	if socket == "" {
		socket = pcsc.SocketPath()
	}
	client, err := pcsc.Dial(ctx, socket)
	if err != nil {
		return nil, explain(err)
	}
	defer client.Close()
	readers, err := client.Readers(ctx)
	if err != nil {
		return nil, explain(err)
	}
	var found []Found
	for _, r := range readers {
		if !r.Present {
			continue
		}
		f, err := find(ctx, socket, r.Name)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			found = append(found, f)
		}
	}
	return found, nil
}

// listTimeout is how long a card may take to say who it is, or another program to let it.
const listTimeout = 2 * time.Second

// find asks the card in a reader who it is. It has a connection of its own: one on which a card does not
// answer is of no more use.
func find(ctx context.Context, socket, reader string) (f Found, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	client, err := pcsc.Dial(ctx, socket)
	if err != nil {
		return f, err
	}
	defer client.Close()
	card, err := client.Connect(ctx, reader)
	if err != nil {
		return f, err
	}
	defer func() {
		if !client.Broken() { // else closing resets the card
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), listTimeout)
			defer cancel()
			_ = card.Disconnect(ctx, pcsc.LeaveCard) // ends the transaction
		}
	}()
	a := applet.New(card)
	if err := card.Begin(ctx); err != nil {
		return f, err
	}
	if err := a.Select(ctx); err != nil {
		return f, err
	}
	version, err := a.Version(ctx)
	if err != nil {
		return f, err
	}
	serial, err := a.Serial(ctx, version)
	return Found{Serial: serial, Firmware: version.String(), Reader: reader}, err
}
