package piv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// Found is a PIV card that is plugged in or, from Survey, a card that may be one.
type Found struct {
	Serial   uint32
	Firmware string // "5.7.1"
	Reader   string
	// Err says why the card could not be asked who it is; Serial and Firmware are not known then. It is inside token.ErrAbsent, and
	// mostly ErrBusy, for another program holds the card, or ErrSilent, for it does not answer.
	Err error
}

// List returns the PIV cards with serial numbers that are plugged in. Others, those that another
// program holds, and those that do not answer for two seconds are left out. An empty socket is that of Options. Errors: token.ErrAbsent if
// pcscd does not run; ctx's.
func List(ctx context.Context, socket string) ([]Found, error) {
	found, err := Survey(ctx, socket)
	return slices.DeleteFunc(found, func(f Found) bool { return f.Err != nil }), err
}

// Survey is List with the cards that could not be asked, and why.
func Survey(ctx context.Context, socket string) ([]Found, error) {
	if socket == "" {
		socket = pcsc.SocketPath()
	}
	readers, err := readersOf(ctx, socket)
	if err != nil {
		return nil, explain(err)
	}
	readers = slices.DeleteFunc(readers, func(r pcsc.Reader) bool { return !r.Present })
	found := make([]Found, len(readers))
	var asking sync.WaitGroup
	for i, r := range readers {
		asking.Go(func() { found[i] = ask(ctx, socket, r.Name) })
	}
	asking.Wait()
	found = slices.DeleteFunc(found, func(f Found) bool { return f.Serial == 0 && (f.Err == nil || isGone(f.Err)) })
	return found, ctx.Err()
}

// isGone reports whether an error says that there is no card any more.
func isGone(err error) bool {
	return errors.Is(err, ErrNoCard) || errors.Is(err, ErrNoReader) || errors.Is(err, ErrRemoved)
}

// askTimeout is how long a card that may be another's may take to say who it is, or another program to let it.
const askTimeout = 2 * time.Second

// ask asks the card in a reader who it is. What is no PIV card has neither a serial number nor an error.
func ask(ctx context.Context, socket, reader string) Found {
	f, err := askCard(ctx, socket, reader)
	if err != nil {
		f = Found{Err: explain(notOurs(err))}
	}
	f.Reader = reader
	return f
}

// askCard has a connection of its own: one on which a card does not answer is of no more use.
func askCard(ctx context.Context, socket, reader string) (f Found, err error) {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client, err := pcsc.Dial(limited, socket)
	if err != nil {
		return f, err
	}
	defer client.Close()
	card, err := client.Connect(limited, reader)
	switch {
	case err != nil && limited.Err() != nil:
		return f, whyNotConnected(ctx, socket, reader)
	case err != nil:
		return f, err
	}
	f, err = identity(limited, card)
	switch {
	case errors.Is(err, pcsc.SharingViolation):
		err = fmt.Errorf("%w: %w", token.ErrAbsent, ErrBusy)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%w: %w", token.ErrAbsent, ErrSilent)
	}
	if !client.Broken() { // else closing resets the card
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		_ = card.Disconnect(limited, pcsc.LeaveCard) // ends the transaction
	}
	return f, err
}

// identity asks a card who it is, in a transaction that stays open.
func identity(ctx context.Context, card *pcsc.Card) (Found, error) {
	a := applet.New(card)
	if err := card.Begin(ctx); err != nil {
		return Found{}, err
	}
	if err := a.Select(ctx); err != nil {
		return Found{}, err
	}
	version, err := a.Version(ctx)
	if err != nil {
		return Found{}, err
	}
	serial, err := a.Serial(ctx, version)
	return Found{Serial: serial, Firmware: version.String()}, err
}
