// Package secret holds octets that do not print. It hides them from format verbs,
// loggers and JSON; it does not lock memory.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Bytes are secret octets. Their owner wipes them.
type Bytes []byte

// String returns a fixed text.
func (Bytes) String() string { return redacted }

// Format writes a fixed text for every verb, %x, %d and %#v too. (A verb that a struct
// around the octets cannot have, as %p, gets past it; vet finds that.)
func (Bytes) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, redacted) // fmt has nowhere to report to
}

// LogValue returns a fixed text, for log/slog.
func (Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a fixed text, so that no encoder writes the octets by accident.
func (Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Wipe overwrites the octets with zeros.
func (b Bytes) Wipe() { clear(b) }
