package token

import "context"

// Attended is a Key that knows what it asks of its user, so that a prompt can say so before.
type Attended interface {
	Key
	// Policy is what the device holds the key to, whoever made it. It does no I/O.
	Policy() Policy
	// Touches is how many touches one operation may take. It does no I/O.
	Touches() int
}

// TryCounter is an Unlocker that tells how often a wrong PIN may be presented.
type TryCounter interface {
	Unlocker
	// TriesLeft returns that number, or TriesUnknown. It uses up no try.
	// Errors: ErrAuthNeeded (there is no PIN to present), ErrLockedOut, ErrAbsent, ErrReplaced.
	TriesLeft(ctx context.Context) (int, error)
}
