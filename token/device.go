package token

import "context"

// PINSetter is an Unlocker whose PIN its users choose, with this program.
type PINSetter interface {
	Unlocker
	// SetPIN sets the token's PIN, or changes it from old, which is empty if there is none
	// yet. Afterwards the token is unlocked. It keeps neither; the caller wipes them.
	// Errors: ErrAuthNeeded (there is a PIN and old is empty), ErrAuthWrong, ErrLockedOut,
	// ErrBadRequest (a PIN that the token cannot have), ErrAbsent, ErrReplaced.
	SetPIN(ctx context.Context, old, pin []byte) error
}

// Locker is an Unlocker that forgets the PIN again.
type Locker interface {
	Unlocker
	// Lock makes the token need its PIN again. A token that is locked stays so.
	Lock(ctx context.Context) error
}

// LastTryUnlocker is an Unlocker that does not use up its last try unless told to.
type LastTryUnlocker interface {
	Unlocker
	// UnlockLastTry is Unlock, even with the last try.
	UnlockLastTry(ctx context.Context, pin []byte) error
}

// Adopter is a Token that takes over keys which other programs made in the same device,
// from those programs' own files. Nothing secret is in such a file.
type Adopter interface {
	// Adopt checks that the file's key is one of this token and loads it once.
	// Errors: ErrBadKey (not such a file), ErrUnsupported (a key of a kind or use that
	// this program does not have), ErrCorrupt (of another device), ErrAuthNeeded, ErrAbsent.
	Adopt(ctx context.Context, req AdoptRequest) (Created, error)
}

// AdoptRequest gives the file of a key that is in the token's power already.
type AdoptRequest struct {
	File []byte // as it is: a TSS2 PEM file
	Slot string // instead of a file, where the token has named places for keys
	// Policy is what the key asks of its user, as far as the caller knows. A token that knows otherwise
	// returns ErrBadRequest, as does one that cannot tell, needs to know, and is not told.
	Policy     Policy
	Use        Use
	Associated []byte
	Auth       Auth
}

// Exporter is a Token that writes a key's file for other programs that use the same
// device. Nothing secret leaves: the file is useless without the device.
type Exporter interface {
	// Export returns the file of a handle. It does no device I/O. Errors: ErrCorrupt, ErrUnsupported.
	Export(handle []byte) ([]byte, error)
}

// Severity says how bad a finding is.
type Severity string

// The severities, best first.
const (
	SeverityInfo    Severity = "info"    // a fact, nothing is wrong
	SeverityWarning Severity = "warning" // works, and should be mended
	SeverityError   Severity = "error"   // something does not work
)

// Finding is one thing that a Doctor found, in sentences for people.
type Finding struct {
	Severity Severity
	Text     string // what is so
	Mend     string // what to do about it; empty for SeverityInfo
}

// Doctor is a Token that can say what is wrong with it.
type Doctor interface {
	// Diagnose looks at the device. What fails is a finding, not an error.
	Diagnose(ctx context.Context) []Finding
}

// Counter is a Token that holds a number which only ever grows and which no copy of the
// agent's files can turn back.
type Counter interface {
	// ReadCounter returns the counter's value. Errors: ErrNotFound (there is no counter
	// yet), ErrAbsent, ErrReplaced.
	ReadCounter(ctx context.Context) (uint64, error)
	// IncrementCounter adds one, after creating the counter if there is none, and returns
	// the new value. Devices wear: it is for changes of the set of keys, not for operations.
	IncrementCounter(ctx context.Context) (uint64, error)
}

// RandomSource is a Token that gives randomness of its own, to be mixed with that of the
// operating system where keys are made outside of it.
type RandomSource interface {
	// Random returns n octets, at most 64. The caller wipes them. Errors: ErrAbsent, ErrReplaced.
	Random(ctx context.Context, n int) ([]byte, error)
}
