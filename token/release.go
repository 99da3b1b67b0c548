package token

import "fmt"

// Release says in which form a key of use decrypt gives clients what was encrypted to it. Each form
// gives less than the one before. A key has the widest that it grants, set when it is made.
type Release string

// The forms in which envelopes are opened for clients.
const (
	// ReleaseSeed is the base seed of an envelope, from which all else follows. It is what a key grants
	// of which nothing else was said.
	ReleaseSeed Release = ""
	// ReleaseKey is the content key and the initial value for one salt.
	ReleaseKey Release = "key"
	// ReleasePlaintext is the plaintext, after the agent has looked at all of the envelope.
	ReleasePlaintext Release = "plaintext"
)

// ParseRelease returns the release of this name; "seed" or nothing is ReleaseSeed.
func ParseRelease(name string) (Release, error) {
	switch r := Release(name); r {
	case ReleaseSeed, ReleaseKey, ReleasePlaintext:
		return r, nil
	case "seed":
		return ReleaseSeed, nil
	}
	return "", fmt.Errorf("unknown release %.40q (known: seed, key, plaintext)", name)
}

// String returns the name.
func (r Release) String() string {
	if r == ReleaseSeed {
		return "seed"
	}
	return string(r)
}

// Grants reports whether a key whose widest form is r gives something out in form asked. What is no
// release grants nothing, and is granted by none.
func (r Release) Grants(asked Release) bool {
	return r.width() > 0 && asked.width() > 0 && r.width() >= asked.width()
}

func (r Release) width() int {
	switch r {
	case ReleaseSeed:
		return 3
	case ReleaseKey:
		return 2
	case ReleasePlaintext:
		return 1
	}
	return 0
}

// Narrower returns the one of two releases that gives less.
func (r Release) Narrower(other Release) Release {
	if r.Grants(other) {
		return other
	}
	return r
}

// Allows reports whether a key can be limited to r; the error, which wraps ErrUnsupported, says why not. Keys that give out points, and RSA
// keys, whose plaintexts are all that they give, have no such limit.
func (r Release) Allows(u Use, a Algorithm) error {
	if r.width() == 0 || r != ReleaseSeed && (u != UseDecrypt || a.RSABits() != 0) {
		return fmt.Errorf("release %q: seed, key or plaintext expected, the last two for keys of use %q on a curve only: %w", r.String(), string(UseDecrypt), ErrUnsupported)
	}
	return nil
}
