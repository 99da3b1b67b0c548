// Package policy decides whether a peer may do an operation with a key of some use. It is
// a pure function of its arguments: it asks nobody, reads nothing, remembers nothing
// and does not know what the key is. Zero values deny.
package policy

import "fmt"

// Operation is what a peer asks for.
type Operation uint8

// The operations. The zero value is none and is never permitted.
const (
	// SSH is listing and signing over the SSH agent protocol.
	SSH Operation = iota + 1
	// Sign is a Mesh signature.
	Sign
	// Agree is a key agreement, whole or partial, whose point leaves the agent.
	Agree
	// Decrypt is a key agreement that stays inside; what was encrypted to the key leaves.
	Decrypt
	// Unwrap is a key agreement of which nothing leaves: a key that was encrypted to the key is taken in.
	Unwrap
	// Share is taking a key apart for its recipients.
	Share
	// SignEnvelope is a signature over a body of which the agent knows the kind.
	SignEnvelope
	// Authenticate is a key agreement of which only session keys leave.
	Authenticate
	// Manage is everything about keys and tokens that is not an operation with one
	// key: making, importing, listing, deleting, unlocking, status. Its use is empty.
	Manage
)

// String names the operation for people.
func (o Operation) String() string {
	switch o {
	case SSH:
		return "ssh"
	case Sign:
		return "sign"
	case Agree:
		return "agree"
	case Decrypt:
		return "decrypt"
	case Unwrap:
		return "unwrap"
	case Share:
		return "share"
	case SignEnvelope:
		return "sign-envelope"
	case Authenticate:
		return "authenticate"
	case Manage:
		return "manage"
	}
	return "unknown operation"
}

// Effect is what a policy says.
type Effect uint8

// The effects. The zero value denies.
const (
	Deny Effect = iota
	Confirm
	Allow
)

// Verdict is an effect, and for Deny what refused and why.
type Verdict struct {
	Effect Effect
	// Rule is "use" if the key's use does not permit the operation, "policy" if the
	// peer may not have it. Empty unless Effect is Deny.
	Rule string
	// Why is for people.
	Why string
}

// Peer is who asks.
type Peer struct {
	UID uint32
}

// Policy says who may do what. The zero value denies everything to everybody.
type Policy struct {
	uid   uint32
	owned bool
}

// Owner returns the policy that holds where nothing is configured: uid may do what a
// key's use permits, nobody else may do anything.
func Owner(uid uint32) Policy { return Policy{uid: uid, owned: true} }

// Decide says whether peer may do op with a key of this use.
func (p Policy) Decide(peer Peer, use string, op Operation) Verdict {
	if !p.owned || peer.UID != p.uid {
		return Verdict{Rule: "policy", Why: fmt.Sprintf("user %d may not use this agent", peer.UID)}
	}
	if !permits(use, op) {
		return Verdict{Rule: "use", Why: fmt.Sprintf("a key of use %q does not permit %s", use, op)}
	}
	return Verdict{Effect: Allow}
}

// permits is the table of uses.
func permits(use string, op Operation) bool {
	switch use {
	case "":
		return op == Manage
	case "ssh":
		return op == SSH
	case "sign":
		return op == Sign
	case "sign-assertion":
		return op == SignEnvelope
	case "authenticate":
		return op == Authenticate
	case "decrypt":
		return op == Decrypt || op == Unwrap
	case "agree":
		return op == Agree || op == Decrypt || op == Unwrap
	case "seal":
		return op == Unwrap
	case "split":
		return op == Share
	}
	return false
}
