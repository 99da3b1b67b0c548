package mesh

// The tags of the attestation messages. They exist on the Mesh socket only.
const (
	TagAttestIdentifyRequest  = "AttestIdentifyRequest"
	TagAttestIdentifyResponse = "AttestIdentifyResponse"
	TagAttestAnswerRequest    = "AttestAnswerRequest"
	TagAttestAnswerResponse   = "AttestAnswerResponse"
)

// AttestIdentifyRequest asks what a token's device is known by.
type AttestIdentifyRequest struct{ Token string }

// AttestIdentifyResponse answers AttestIdentifyRequest.
type AttestIdentifyResponse struct {
	Reply
	Identity Binary `json:",omitzero"` // the document, docs/attestation.md
}

// AttestAnswerRequest asks for proof that a key is in its token.
type AttestAnswerRequest struct {
	KeyId     string
	Challenge Binary // the document
	PCRs      string `json:",omitzero"` // selection such as "sha256:0,7"
}

// AttestAnswerResponse answers AttestAnswerRequest.
type AttestAnswerResponse struct {
	Reply
	Answer Binary `json:",omitzero"` // the document
}
