package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// recoveryKey signs in place of PCRs.
type recoveryKey struct {
	private *ecdsa.PrivateKey
	public  tpm2.TPMTPublic
	name    []byte
}

// newRecoveryKey derives the key on P-256 from the recovery secret with HKDF-SHA-256. Of the
// candidates it takes the first that is a scalar, which is the first but for one time in 2^32.
func newRecoveryKey(secret []byte) (*recoveryKey, error) {
	if len(secret) != recoveryLen {
		return nil, &token.AuthError{Reason: token.ErrAuthWrong, Kind: "recovery secret", TriesLeft: token.TriesUnknown}
	}
	for i := range 8 {
		scalar, err := hkdf.Key(sha256.New, secret, nil, fmt.Sprintf("mesh-agent TPM recovery %d", i), 32)
		if err != nil {
			return nil, err
		}
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
		clear(scalar)
		if err == nil {
			return publishRecovery(private)
		}
	}
	return nil, errors.New("no key comes of the recovery secret")
}

func publishRecovery(private *ecdsa.PrivateKey) (*recoveryKey, error) {
	point, err := private.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	r := &recoveryKey{private: private, public: tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgECC,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters:       eccParms(tpm2.TPMECCNistP256),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}}
	r.name, err = nameOf(r.public.NameAlg, tpm2.Marshal(r.public))
	return r, err
}

// policySigned lets the recovery key authorize one policy session, which was tried out: a signature over another session's
// nonce would let that one open what the recovery secret opens. TPM 2.0 Part 3, 23.3.
func (d *device) policySigned(p *session, r *recoveryKey) error {
	digest := sha256.New()
	digest.Write(p.nonceTPM)
	digest.Write(binary.BigEndian.AppendUint32(nil, 0)) // no expiration; no cpHash, no policyRef
	rs, ss, err := ecdsa.Sign(rand.Reader, r.private, digest.Sum(nil))
	if err != nil {
		return err
	}
	var key *tpm2.LoadExternalResponse
	err = d.withRoom(1, func() (err error) {
		key, err = run(d, tpm2.LoadExternal{InPublic: tpm2.New2B(r.public), Hierarchy: tpm2.TPMRHNull})
		return err
	})
	if err != nil {
		return err
	}
	_, err = run(d, tpm2.PolicySigned{
		AuthObject:    key.ObjectHandle,
		PolicySession: p.handle,
		NonceTPM:      tpm2.TPM2BNonce{Buffer: p.nonceTPM},
		Auth: tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgECDSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
				Hash:       tpm2.TPMAlgSHA256,
				SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.FillBytes(make([]byte, 32))},
				SignatureS: tpm2.TPM2BECCParameter{Buffer: ss.FillBytes(make([]byte, 32))},
			}),
		},
	})
	return errors.Join(err, d.flush(key.ObjectHandle))
}
