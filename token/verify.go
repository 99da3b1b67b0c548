package token

// SelfVerifier is a Signer that verifies every signature which its device made, by the public key,
// before it returns it. A wrong one is ErrFault. Others need not do so again.
type SelfVerifier interface {
	Signer
	// VerifiesSignatures does nothing.
	VerifiesSignatures()
}
