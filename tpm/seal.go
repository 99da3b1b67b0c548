package tpm

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// A sealed secret of any length is encrypted with AES-256-GCM under a fresh key, and the key
// is sealed in a TPM object:
//
//	without PCRs  the object's authorization value opens it: empty, or that of the PIN
//	with PCRs     only a policy does: TPM2_PolicyOR of
//	                 TPM2_PolicyPCR and TPM2_PolicyAuthValue
//	                 TPM2_PolicySigned by the recovery key
//	                 a binding, which nothing satisfies
//
// The recovery key is an ECDSA key derived from the recovery secret. The secret itself, 160 random
// bits, never goes to the TPM: a signature over the TPM's nonce does, which is good for one
// session. It opens the object without the PIN.
//
// Associated data, PCR selection and the parent's Name are bound to the object by its policy, and
// the whole header is associated data of the encryption.

// sealedFile is a sealed secret.
type sealedFile struct {
	Header     sealedHeader
	Ciphertext []byte // AES-256-GCM with the zero nonce: the key is used once
}

type sealedHeader struct {
	Object   objectFile
	PCRs     string `asn1:"utf8"` // token.PCRSelection, or empty
	Measured []byte // policy digest of the PCR branch, or empty
	Recovery []byte // policy digest of the recovery branch, or empty
}

const (
	maxSealed   = 16 << 20
	recoveryLen = 20
)

// sealTemplate is the public area of sealed data. byValue lets its authorization value open it, not
// only its policy.
func sealTemplate(byValue, pin bool, policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgKeyedHash,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, UserWithAuth: byValue, NoDA: !pin,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}

// policy is the object's policy, from all that is bound to it.
func (h *sealedHeader) policy(associated []byte) []byte {
	bound := binding([]byte("seal"), h.Object.ParentName, []byte(h.PCRs), associated)
	if h.PCRs == "" {
		return bound
	}
	return h.branches(bound).policy()
}

type branches [][]byte

func (h *sealedHeader) branches(bound []byte) branches {
	return branches{h.Measured, h.Recovery, bound}
}

func (b branches) policy() []byte { return policyDigest(nil).or(b...) }

// Seal encrypts a secret to this TPM and, as asked, to the PIN and to the present values of
// PCRs: one bank and its registers, "sha256:7,14". The zero PINPolicy is PINNever.
// Errors: as token.Sealer; token.ErrBadRequest for a selection that is none.
func (t *Token) Seal(ctx context.Context, req token.SealRequest) (token.Sealed, error) {
	o, err := t.offerFor(req.PIN, req.Auth)
	if err != nil {
		return token.Sealed{}, fmt.Errorf("tpm: seal: %w", err)
	}
	defer o.wipe()
	if len(req.Secret) > maxSealed {
		return token.Sealed{}, fmt.Errorf("tpm: seal: %w: secret of %d octets", token.ErrBadRequest, len(req.Secret))
	}
	s, err := newSealing(req)
	if err != nil {
		return token.Sealed{}, fmt.Errorf("tpm: seal: %w", err)
	}
	defer clear(s.key)
	header, err := do(ctx, t, "seal", func(d *device) (*sealedHeader, error) { return d.seal(s, o) })
	t.pin.learn(req.Auth.PIN, err)
	if err != nil {
		return token.Sealed{}, err
	}
	blob, err := header.encrypt(s.key, req.Secret, req.Associated)
	if err != nil {
		return token.Sealed{}, fmt.Errorf("tpm: seal: %w", err)
	}
	return token.Sealed{Blob: blob, Guard: guardOf(req.PCRs != "", o != nil), Recovery: s.recovery}, nil
}

func guardOf(pcrs, pin bool) token.Guard {
	switch {
	case pcrs:
		return token.GuardPCR
	case pin:
		return token.GuardPIN
	}
	return token.GuardMachine
}

// sealing is what is drawn for one sealed secret.
type sealing struct {
	key        []byte
	associated []byte
	pcrs       *token.PCRSelection // nil for none
	recovery   []byte
}

func newSealing(req token.SealRequest) (*sealing, error) {
	s := &sealing{key: make([]byte, 32), associated: req.Associated}
	rand.Read(s.key)
	if req.PCRs == "" {
		return s, nil
	}
	pcrs, err := token.ParsePCRs(req.PCRs)
	if err != nil {
		return nil, err
	}
	s.pcrs, s.recovery = &pcrs, make([]byte, recoveryLen)
	rand.Read(s.recovery)
	return s, nil
}

func (d *device) seal(s *sealing, o *offer) (*sealedHeader, error) {
	value, err := o.keyValue(d, "seal")
	if err != nil {
		return nil, err
	}
	defer clear(value)
	h := &sealedHeader{Object: objectFile{ParentName: d.srk.Name.Buffer}}
	if s.pcrs != nil {
		h.PCRs = s.pcrs.String()
		if h.Measured, h.Recovery, err = d.branchDigests(s); err != nil {
			return nil, err
		}
	}
	template := sealTemplate(s.pcrs == nil, o != nil, h.policy(s.associated))
	made, err := d.create(template, value, s.key)
	if err != nil {
		return nil, err
	}
	if err := made.parseArea(); err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	if !made.fits(template) {
		return nil, fmt.Errorf("%w: not the object that was asked for", token.ErrFault)
	}
	h.Object = made.file()
	return h, nil
}

func (d *device) branchDigests(s *sealing) (measured, recovery []byte, err error) {
	m, err := d.measure(*s.pcrs)
	if err != nil {
		return nil, nil, err
	}
	r, err := newRecoveryKey(s.recovery)
	if err != nil {
		return nil, nil, err
	}
	return m.authValue(), policyDigest(nil).signed(r.name), nil
}

func (h *sealedHeader) aead(key, associated []byte) (cipher.AEAD, []byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, nil, err
	}
	header, err := asn1.Marshal(*h) // says where it ends
	return aead, append(header, associated...), err
}

func (h *sealedHeader) encrypt(key, secret, associated []byte) ([]byte, error) {
	aead, data, err := h.aead(key, associated)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(sealedFile{Header: *h, Ciphertext: aead.Seal(nil, make([]byte, aead.NonceSize()), secret, data)})
}

func (f *sealedFile) decrypt(key, associated []byte) ([]byte, error) {
	aead, data, err := f.Header.aead(key, associated)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, make([]byte, aead.NonceSize()), f.Ciphertext, data)
}

// parsedSeal is a sealed secret whose header has been found to be the one that the
// object is bound to.
type parsedSeal struct {
	file     *sealedFile
	object   object
	branches branches // nil without PCRs
}

// parseSealed checks all that can be checked without the TPM.
func parseSealed(der, associated []byte) (*parsedSeal, error) {
	f, err := parseFile[sealedFile](der, maxSealed+maxFile)
	if err != nil {
		return nil, err
	}
	h := &f.Header
	o, err := h.Object.object()
	if err != nil {
		return nil, err
	}
	if err := o.parseArea(); err != nil {
		return nil, err
	}
	byValue := h.PCRs == ""
	template := sealTemplate(byValue, !o.emptyAuth, h.policy(associated))
	if !o.fits(template) {
		return nil, errors.New("header or associated data is not what was sealed")
	}
	s := &parsedSeal{file: &f, object: o}
	if !byValue {
		if p, err := token.ParsePCRs(h.PCRs); err != nil || p.String() != h.PCRs {
			return nil, errors.New("PCR selection is none")
		}
		s.branches = h.branches(binding([]byte("seal"), h.Object.ParentName, []byte(h.PCRs), associated))
	}
	return s, nil
}

// Unseal returns a sealed secret. With req.Recovery, of a secret that is sealed to PCRs, neither
// their values nor the PIN matter.
// Errors: as token.Sealer; token.ErrAuthWrong also for a wrong recovery secret;
// token.ErrReplaced also for a secret sealed to another TPM.
func (t *Token) Unseal(ctx context.Context, req token.UnsealRequest) ([]byte, error) {
	s, err := parseSealed(req.Blob, req.Associated)
	if err != nil {
		return nil, fmt.Errorf("tpm: unseal: %w: %w", token.ErrCorrupt, err)
	}
	o, open, err := t.opener(s, req)
	if err != nil {
		return nil, fmt.Errorf("tpm: unseal: %w", err)
	}
	defer o.wipe()
	key, err := do(ctx, t, "unseal", open)
	t.pin.learn(req.Auth.PIN, err)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	secret, err := s.file.decrypt(key, req.Associated)
	if err != nil {
		return nil, fmt.Errorf("tpm: unseal: %w: %w", token.ErrCorrupt, err)
	}
	return secret, nil
}

// opener chooses the way by which the TPM opens the key, and what it needs of the PIN.
func (t *Token) opener(s *parsedSeal, req token.UnsealRequest) (*offer, func(*device) ([]byte, error), error) {
	if s.branches != nil && len(req.Recovery) != 0 {
		r, err := newRecoveryKey(req.Recovery)
		if err != nil {
			return nil, nil, err
		}
		if !bytes.Equal(policyDigest(nil).signed(r.name), s.file.Header.Recovery) {
			return nil, nil, &token.AuthError{Reason: token.ErrAuthWrong, Kind: "recovery secret", TriesLeft: token.TriesUnknown}
		}
		return nil, func(d *device) ([]byte, error) { return d.unsealRecovery(s, r) }, nil
	}
	o, err := t.pin.offerTo(&s.object, req.Auth)
	return o, func(d *device) ([]byte, error) {
		value, err := o.keyValue(d, "seal")
		if err != nil {
			return nil, err
		}
		defer clear(value)
		open := d.unsealValue
		if s.branches != nil {
			open = d.unsealPCRs
		}
		key, err := open(s, value)
		return key, t.pin.used(&s.object, o, err)
	}, err
}

func (d *device) unsealValue(s *parsedSeal, value []byte) (key []byte, err error) {
	h, err := d.use(&s.object)
	if err != nil {
		return nil, err
	}
	defer func() { err = d.thenDrop(&s.object, err) }()
	return d.unseal(h, value)
}

// unsealPCRs opens the key if the registers have the values that they were sealed to.
func (d *device) unsealPCRs(s *parsedSeal, value []byte) ([]byte, error) {
	pcrs, err := parseSelection(s.file.Header.PCRs)
	if err != nil {
		return nil, err
	}
	return d.unsealPolicy(s, func(p *session) error {
		if _, err := run(d, tpm2.PolicyPCR{PolicySession: p.handle, Pcrs: pcrs}); err != nil {
			return err
		}
		_, err := run(d, tpm2.PolicyAuthValue{PolicySession: p.handle})
		return err
	}, value, false)
}

// unsealRecovery opens the key by the recovery key's signature.
func (d *device) unsealRecovery(s *parsedSeal, r *recoveryKey) ([]byte, error) {
	return d.unsealPolicy(s, func(p *session) error { return d.policySigned(p, r) }, nil, true)
}

// unsealPolicy satisfies one branch of the object's policy in a session of its own. The
// connection's session encrypts what comes out: the policy's session would do so under the
// object's authorization value, too, which recovery does not know.
func (d *device) unsealPolicy(s *parsedSeal, branch func(*session) error, value []byte, omit bool) (key []byte, err error) {
	p, err := d.startSession(tpm2.TPMSEPolicy)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.flush(p.handle)) }()
	if err := d.tryOut(p); err != nil {
		return nil, err
	}
	if err := branch(p); err != nil {
		return nil, err
	}
	var list tpm2.TPMLDigest
	for _, b := range s.branches {
		list.Digests = append(list.Digests, tpm2.TPM2BDigest{Buffer: b})
	}
	if _, err := run(d, tpm2.PolicyOr{PolicySession: p.handle, PHashList: list}); err != nil {
		return nil, s.pcrFault(err)
	}
	h, err := d.use(&s.object)
	if err != nil {
		return nil, err
	}
	defer func() { err = d.thenDrop(&s.object, err) }()
	policy := &authorization{session: p, value: trimZeros(value), omit: omit, attributes: clearly}
	rsp, err := run(d, tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: policy},
	}, d.authorize(nil, outward))
	if err != nil {
		return nil, s.pcrFault(err)
	}
	return rsp.OutData.Buffer, nil
}

// pcrFault tells changed registers from other failures.
func (s *parsedSeal) pcrFault(err error) error {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCValue, tpm2.TPMRCPolicyFail, tpm2.TPMRCPCRChanged} {
		if errors.Is(err, rc) {
			return fmt.Errorf("%w: %w", &token.PCRError{PCRs: s.file.Header.PCRs}, err)
		}
	}
	return err
}

// Reseal opens a sealed secret and seals it anew: to the present values of the PCRs, or to
// other guards. req.Secret is not used. Errors: as Unseal and Seal.
func (t *Token) Reseal(ctx context.Context, old token.UnsealRequest, req token.SealRequest) (token.Sealed, error) {
	secret, err := t.Unseal(ctx, old)
	if err != nil {
		return token.Sealed{}, err
	}
	defer clear(secret)
	req.Secret = secret
	return t.Seal(ctx, req)
}
