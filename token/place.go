package token

// Place says where in a token with named places for keys a new key goes. The zero value
// leaves it to the token, and is all that other tokens take.
type Place struct {
	// Slot names the place: "9a" on a PIV card.
	Slot string
	// Overwrite says that what the place holds may be lost.
	Overwrite bool
}
