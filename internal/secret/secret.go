// Package secret holds octets that do not print. It hides them from format verbs,
// loggers and JSON; it does not lock memory.
package secret

import "log/slog"

const redacted = "[redacted]"

// Bytes are secret octets. Their owner wipes them.
type Bytes []byte

// String returns a fixed text.
func (Bytes) String() string { return redacted }

// GoString returns a fixed text, for %#v.
func (Bytes) GoString() string { return redacted }

// LogValue returns a fixed text, for log/slog.
func (Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a fixed text, so that no encoder writes the octets by accident.
func (Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Wipe overwrites the octets with zeros.
func (b Bytes) Wipe() { clear(b) }
