package tpm

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// session is an HMAC or policy session (TPM 2.0 Part 1, 19.6), salted to the storage root
// key: only the TPM that holds this key knows the session key, so that it alone can answer
// and read. It lasts as long as the connection.
//
// go-tpm's sessions are not used: they have one authorization value and one direction of
// encryption each, and cut an authorization value at its first zero octet. Here
// both are chosen with each command, as the TPM does, and one session serves for all.
type session struct {
	handle      tpm2.TPMHandle
	key         []byte
	nonceTPM    []byte
	nonceCaller []byte
}

const (
	nonceLen   = 16
	sessionKey = 16 // octets of AES-128, which encrypts parameters in CFB mode
)

// errForged says that a response did not come from the TPM whose storage root key the
// session is salted to, or was changed on its way.
var errForged = errors.New("response is not authentic")

// startSession makes a session of a kind: TPM_SE_HMAC or TPM_SE_POLICY.
func (d *device) startSession(kind tpm2.TPMSE) (*session, error) {
	kem, err := tpm2.ImportEncapsulationKey(&d.srk.public)
	if err != nil {
		return nil, fmt.Errorf("use storage root key: %w", err)
	}
	salt, sealed, err := tpm2.CreateEncryptedSalt(rand.Reader, kem)
	if err != nil {
		return nil, fmt.Errorf("make salt: %w", err)
	}
	defer clear(salt)
	s := &session{nonceCaller: make([]byte, nonceLen)}
	rand.Read(s.nonceCaller)
	start := func() (*tpm2.StartAuthSessionResponse, error) {
		return run(d, tpm2.StartAuthSession{
			TPMKey:        d.srk.Handle,
			Bind:          tpm2.TPMRHNull,
			NonceCaller:   tpm2.TPM2BNonce{Buffer: s.nonceCaller},
			EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: sealed},
			SessionType:   kind,
			Symmetric: tpm2.TPMTSymDef{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(8*sessionKey)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			AuthHash: tpm2.TPMAlgSHA256,
		})
	}
	rsp, err := start()
	if d.exclusive && errors.Is(err, tpm2.TPMRCSessionMemory) {
		// Nobody else is connected: the sessions in the way are of the dead.
		if err := d.flushStale(); err != nil {
			return nil, err
		}
		rsp, err = start()
	}
	if err != nil {
		return nil, err
	}
	s.handle, s.nonceTPM = rsp.SessionHandle, rsp.NonceTPM.Buffer
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.nonceTPM, s.nonceCaller, 8*sha256.Size)
	return s, nil
}

// Directions in which a command's first parameter is encrypted. Only parameters that begin
// with their length can be.
const (
	clearly tpm2Attributes = 1 // continueSession
	inward  tpm2Attributes = clearly | 1<<5
	outward tpm2Attributes = clearly | 1<<6
	bothway tpm2Attributes = inward | outward
)

// tpm2Attributes is TPMA_SESSION. TPM 2.0 Part 2, 8.4.
type tpm2Attributes byte

func (a tpm2Attributes) long() tpm2.TPMASession {
	return tpm2.TPMASession{ContinueSession: a&clearly != 0, Decrypt: a&(1<<5) != 0, Encrypt: a&(1<<6) != 0}
}

// authorization is a session's part in one command.
type authorization struct {
	*session
	// value is the authorization value of the object that the session authorizes.
	value []byte
	// omit leaves value out of the HMAC: for policies that do not ask for it. The
	// parameters are encrypted with it all the same (TPM 2.0 Part 1, 21.2).
	omit       bool
	attributes tpm2Attributes
}

// authorize makes the part of the connection's own session in one command.
func (d *device) authorize(value []byte, a tpm2Attributes) *authorization {
	return &authorization{session: d.session, value: trimZeros(value), attributes: a}
}

// trimZeros drops trailing zeros, as the TPM does with authorization values (TPM 2.0 Part 1, 19.6.5).
func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// mac computes the HMAC of TPM 2.0 Part 1, 19.6.5.
func (a *authorization) mac(out, parameterHash, newer, older, more []byte, attributes byte) []byte {
	value := a.value
	if a.omit {
		value = nil
	}
	key := slices.Concat(a.key, value)
	defer clear(key)
	h := hmac.New(sha256.New, key)
	h.Write(parameterHash)
	h.Write(newer)
	h.Write(older)
	h.Write(more)
	h.Write([]byte{attributes})
	return h.Sum(out)
}

func (a *authorization) commandMAC(out []byte, cc tpm2.TPMCC, parameters, more []byte, names ...tpm2.TPM2BName) []byte {
	h := sha256.New()
	var code [4]byte
	binary.BigEndian.PutUint32(code[:], uint32(cc))
	h.Write(code[:])
	for _, n := range names {
		h.Write(n.Buffer)
	}
	h.Write(parameters)
	var sum [sha256.Size]byte
	return a.mac(out, h.Sum(sum[:0]), a.nonceCaller, a.nonceTPM, more, byte(a.attributes))
}

// checkResponse takes over the new nonce of a successful response and checks its HMAC.
func (a *authorization) checkResponse(cc tpm2.TPMCC, parameters, nonce []byte, attributes byte, mac []byte) error {
	a.nonceTPM = nonce
	h := sha256.New()
	var codes [8]byte // TPM_RC_SUCCESS, command code
	binary.BigEndian.PutUint32(codes[4:], uint32(cc))
	h.Write(codes[:])
	h.Write(parameters)
	var sum, want [sha256.Size]byte
	if !hmac.Equal(a.mac(want[:0], h.Sum(sum[:0]), nonce, a.nonceCaller, nil, attributes), mac) {
		return errForged
	}
	return nil
}

// crypt encrypts or decrypts a parameter in place, TPM 2.0 Part 1, 21.3.
func (a *authorization) crypt(parameter, newer, older []byte, mode func(cipher.Block, []byte) cipher.Stream) error {
	secret := slices.Concat(a.key, a.value)
	defer clear(secret)
	keyIV := tpm2.KDFa(crypto.SHA256, secret, "CFB", newer, older, 8*(sessionKey+aes.BlockSize))
	defer clear(keyIV)
	block, err := aes.NewCipher(keyIV[:sessionKey])
	if err != nil {
		return err
	}
	mode(block, keyIV[sessionKey:]).XORKeyStream(parameter, parameter)
	return nil
}

// The methods of tpm2.Session, for the commands that go through go-tpm.

var _ tpm2.Session = (*authorization)(nil)

// Init does nothing: the session is there.
func (a *authorization) Init(transport.TPM) error { return nil }

// CleanupFailure does nothing: the session outlives commands that fail.
func (a *authorization) CleanupFailure(transport.TPM) error { return nil }

// NonceTPM returns the TPM's last nonce.
func (a *authorization) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: a.nonceTPM} }

// NewNonceCaller draws the nonce of the next command.
func (a *authorization) NewNonceCaller() error {
	rand.Read(a.nonceCaller)
	return nil
}

// Authorize computes the session's entry in the command.
func (a *authorization) Authorize(cc tpm2.TPMCC, parameters, more []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	return &tpm2.TPMSAuthCommand{
		Handle:        a.session.handle,
		Nonce:         tpm2.TPM2BNonce{Buffer: a.nonceCaller},
		Attributes:    a.attributes.long(),
		Authorization: tpm2.TPM2BData{Buffer: a.commandMAC(nil, cc, parameters, more, names...)},
	}, nil
}

// Validate checks the session's entry in the response.
func (a *authorization) Validate(_ tpm2.TPMRC, cc tpm2.TPMCC, parameters []byte, _ []tpm2.TPM2BName, _ int, r *tpm2.TPMSAuthResponse) error {
	return a.checkResponse(cc, parameters, r.Nonce.Buffer, tpm2.Marshal(r.Attributes)[0], r.Authorization.Buffer)
}

// IsEncryption reports whether the response's first parameter is encrypted.
func (a *authorization) IsEncryption() bool { return a.attributes.long().Encrypt }

// IsDecryption reports whether the command's first parameter is encrypted.
func (a *authorization) IsDecryption() bool { return a.attributes.long().Decrypt }

// Encrypt encrypts a command's parameter in place.
func (a *authorization) Encrypt(parameter []byte) error {
	//lint:ignore SA1019 TPM 2.0 has no other mode for parameters; the session's HMAC authenticates.
	return a.crypt(parameter, a.nonceCaller, a.nonceTPM, cipher.NewCFBEncrypter)
}

// Decrypt decrypts a response's parameter in place.
func (a *authorization) Decrypt(parameter []byte) error {
	//lint:ignore SA1019 as Encrypt
	return a.crypt(parameter, a.nonceTPM, a.nonceCaller, cipher.NewCFBDecrypter)
}

// Handle returns the session's handle.
func (a *authorization) Handle() tpm2.TPMHandle { return a.session.handle }

// operate gives a command on one object with one session: what go-tpm's Execute does, without
// its reflection, which takes longer than everything else here. parameters begin
// with one that has a length. It returns the response's parameters, decrypted.
func (d *device) operate(cc tpm2.TPMCC, object tpm2.NamedHandle, a *authorization, parameters []byte) ([]byte, error) {
	a.NewNonceCaller()
	if a.IsDecryption() {
		parameters = slices.Clone(parameters)
		n := 2 + int(binary.BigEndian.Uint16(parameters))
		if err := a.Encrypt(parameters[2:n]); err != nil {
			return nil, err
		}
	}
	response, err := d.link.Send(a.command(cc, object, parameters))
	if err != nil {
		return nil, err
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); rc != tpm2.TPMRCSuccess {
		return nil, d.staleOr(rc)
	}
	out, err := a.response(cc, response[headerLen:])
	if err != nil {
		return nil, err
	}
	if a.IsEncryption() {
		first, _, err := cut(out)
		if err != nil {
			return nil, broken("parse response", err)
		}
		if err := a.Decrypt(first); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// command lays out header, handle, authorization area and parameters. TPM 2.0 Part 1, 18.
func (a *authorization) command(cc tpm2.TPMCC, object tpm2.NamedHandle, parameters []byte) []byte {
	const authorizationLen = 4 + 2 + nonceLen + 1 + 2 + sha256.Size
	size := headerLen + 4 + 4 + authorizationLen + len(parameters)
	b := make([]byte, 0, size)
	b = binary.BigEndian.AppendUint16(b, uint16(tpm2.TPMSTSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = binary.BigEndian.AppendUint32(b, uint32(cc))
	b = binary.BigEndian.AppendUint32(b, uint32(object.Handle))
	b = binary.BigEndian.AppendUint32(b, authorizationLen)
	b = binary.BigEndian.AppendUint32(b, uint32(a.session.handle))
	b = appendSized(b, a.nonceCaller)
	b = append(b, byte(a.attributes))
	b = binary.BigEndian.AppendUint16(b, sha256.Size)
	b = a.commandMAC(b, cc, parameters, nil, object.Name)
	return append(b, parameters...)
}

// response takes the response apart behind its header: length of the parameters,
// parameters, the session's entry.
func (a *authorization) response(cc tpm2.TPMCC, b []byte) ([]byte, error) {
	malformed := broken("parse response", errors.New("authorization area is not as it should be"))
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, malformed
	}
	n := binary.BigEndian.Uint32(b)
	parameters := b[4 : 4+n]
	nonce, b, err := cut(b[4+n:])
	if err != nil || len(b) == 0 {
		return nil, malformed
	}
	attributes := b[0]
	mac, b, err := cut(b[1:])
	if err != nil || len(b) != 0 {
		return nil, malformed
	}
	if err := a.checkResponse(cc, parameters, nonce, attributes, mac); err != nil {
		return nil, err
	}
	return parameters, nil
}

// appendSized appends the two octets of length of a TPM2B, and b.
func appendSized(out, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
}

// cut returns the contents of the TPM2B that b begins with, and the rest.
func cut(b []byte) (first, rest []byte, err error) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) > len(b)-2 {
		return nil, nil, errors.New("too short")
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n:n], b[n:], nil
}
