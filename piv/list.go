package piv

import (
	"context"
	"slices"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
)

// Found is a PIV card that is plugged in.
type Found struct {
	Serial   uint32
	Firmware string // "5.7.1"
	Reader   string
}

// List returns the PIV cards with serial numbers that are plugged in. Others, and those that another
// program holds, are left out. An empty socket is that of Options. Errors: token.ErrAbsent if
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
	readers = slices.DeleteFunc(readers, func(r pcsc.Reader) bool { return !r.Present })
	var found []Found
	for _, r := range readers {
		f, err := find(ctx, client, r.Name)
		if client.Broken() {
			return nil, explain(err)
		}
		if err == nil {
			found = append(found, f)
		}
	}
	return found, nil
}

// find asks the card in a reader who it is.
func find(ctx context.Context, client *pcsc.Client, reader string) (f Found, err error) {
	card, err := client.Connect(ctx, reader)
	if err != nil {
		return f, err
	}
	defer func() {
		if !client.Broken() {
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
