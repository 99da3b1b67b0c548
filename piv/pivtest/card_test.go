package pivtest

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"testing"
	"time"
)

var (
	firmware43 = Config{Version: [3]byte{4, 3, 5}}
	firmware52 = Config{Version: [3]byte{5, 2, 7}}
	firmware54 = Config{Version: [3]byte{5, 4, 3}}
)

// The key a host is told of is the one the card computes with, for every algorithm.
func TestKeys(t *testing.T) {
	t.Parallel()
	for name, alg := range map[string]byte{
		"RSA-1024": AlgRSA1024, "RSA-2048": AlgRSA2048, "RSA-3072": AlgRSA3072,
		"P-256": AlgP256, "P-384": AlgP384, "Ed25519": AlgEd25519, "X25519": AlgX25519,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, Config{})
			h.admin()
			answer := h.want(swOK, insGenerate, 0, SlotAuthentication, encode(0xAC, encode(0x80, []byte{alg})))
			template, ok := decodeOnly(0x7F49, answer)
			if !ok {
				t.Fatalf("answer % X is no template 7F49", answer)
			}
			h.pin(swOK, DefaultPIN)
			h.checkKey(SlotAuthentication, alg, template)
		})
	}
}

// checkKey uses the key in a slot and compares with the public key in a template.
func (h *host) checkKey(slot, alg byte, template map[uint32][]byte) {
	h.t.Helper()
	public, err := h.card.PublicKey(slot)
	if err != nil {
		h.t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	switch key := public.(type) {
	case *rsa.PublicKey:
		if !bytes.Equal(template[0x81], key.N.Bytes()) || !bytes.Equal(template[0x82], []byte{1, 0, 1}) {
			h.t.Error("the template has another modulus or exponent")
		}
		h.checkRSA(slot, alg, key)
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil || !bytes.Equal(template[0x86], point) {
			h.t.Errorf("the template has another point: %v", err)
		}
		if !ecdsa.VerifyASN1(key, digest[:], h.use(swOK, alg, slot, 0x81, digest[:])) {
			h.t.Error("the signature is wrong")
		}
		peer, err := key.ECDH()
		if err != nil {
			h.t.Fatal(err)
		}
		h.checkAgreement(slot, alg, peer)
	case ed25519.PublicKey:
		if !bytes.Equal(template[0x86], key) {
			h.t.Error("the template has another key")
		}
		message := bytes.Repeat([]byte("long message "), 100)
		if !ed25519.Verify(key, message, h.use(swOK, alg, slot, 0x81, message)) {
			h.t.Error("the signature is wrong")
		}
	case *ecdh.PublicKey:
		if !bytes.Equal(template[0x86], key.Bytes()) {
			h.t.Error("the template has another key")
		}
		h.checkAgreement(slot, alg, key)
	default:
		h.t.Fatalf("public key of type %T", public)
	}
}

func (h *host) checkRSA(slot, alg byte, key *rsa.PublicKey) {
	h.t.Helper()
	want := big.NewInt(123456789)
	c := new(big.Int).Exp(want, big.NewInt(int64(key.E)), key.N).FillBytes(make([]byte, key.Size()))
	if got := h.use(swOK, alg, slot, 0x81, c); len(got) != key.Size() || new(big.Int).SetBytes(got).Cmp(want) != 0 {
		h.t.Errorf("the private operation answers %x", got)
	}
	h.use(swWrongData, alg, slot, 0x81, key.N.Bytes())
	h.use(swWrongData, alg, slot, 0x81, c[1:])
}

func (h *host) checkAgreement(slot, alg byte, key *ecdh.PublicKey) {
	h.t.Helper()
	ours, err := key.Curve().GenerateKey(rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	want, err := ours.ECDH(key)
	if err != nil {
		h.t.Fatal(err)
	}
	if got := h.use(swOK, alg, slot, 0x85, ours.PublicKey().Bytes()); !bytes.Equal(got, want) {
		h.t.Errorf("the agreement is %x, want %x", got, want)
	}
	h.use(swWrongData, alg, slot, 0x85, ours.PublicKey().Bytes()[1:])
}

func TestImport(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := key.Precomputed
	rsaParts := join(encode(1, key.Primes[0].Bytes()), encode(2, key.Primes[1].Bytes()),
		encode(3, p.Dp.Bytes()), encode(4, p.Dq.Bytes()), encode(5, p.Qinv.Bytes()))
	wrong := bytes.Clone(rsaParts)
	wrong[len(wrong)-1] ^= 1
	scalar := bytes.Repeat([]byte{5}, 48)
	for _, c := range []struct {
		name   string
		alg    byte
		data   []byte
		status sw
	}{
		{"RSA-2048", AlgRSA2048, rsaParts, swOK},
		{"RSA-2048 with a wrong coefficient", AlgRSA2048, wrong, swWrongData},
		{"RSA-2048 as RSA-3072", AlgRSA3072, rsaParts, swWrongData},
		{"RSA without primes", AlgRSA2048, nil, swWrongData},
		{"P-256", AlgP256, encode(6, scalar[:32]), swOK},
		{"P-256 zero", AlgP256, encode(6, make([]byte, 32)), swWrongData},
		{"P-384", AlgP384, encode(6, scalar), swOK},
		{"P-384 short", AlgP384, encode(6, scalar[:32]), swWrongData},
		{"Ed25519", AlgEd25519, encode(7, scalar[:32]), swOK},
		{"Ed25519 long", AlgEd25519, encode(7, scalar), swWrongData},
		{"X25519", AlgX25519, encode(8, scalar[:32]), swOK},
		{"X25519 in the wrong tag", AlgX25519, encode(6, scalar[:32]), swWrongData},
		{"unknown policy", AlgP256, join(encode(6, scalar[:32]), encode(0xAA, []byte{9})), swWrongData},
		{"policy of two bytes", AlgP256, join(encode(6, scalar[:32]), encode(0xAB, []byte{1, 1})), swWrongData},
		{"unknown algorithm", 0x77, nil, swYubicoP1P2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, Config{})
			h.admin()
			h.want(c.status, insImport, c.alg, SlotRetired1, c.data)
			if c.status != swOK {
				return
			}
			h.pin(swOK, DefaultPIN)
			public, ok := decodeAll(h.card.state.keys[SlotRetired1].encodePublic())
			if !ok {
				t.Fatal("the public key is not encoded")
			}
			h.checkKey(SlotRetired1, c.alg, public)
			h.want(swWrongData, insAttest, SlotRetired1, 0, nil)
		})
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/rsa4096.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	long, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, Config{})
	for alg, key := range map[byte]crypto.PrivateKey{AlgRSA4096: long, AlgP256: mustP256(), AlgEd25519: ed, AlgX25519: x} {
		if err := h.card.Put(SlotCardAuth, key, PINPolicyDefault, TouchPolicyDefault); err != nil {
			t.Fatal(err)
		}
		template, ok := decodeAll(h.card.state.keys[SlotCardAuth].encodePublic())
		if !ok {
			t.Fatal("the public key is not encoded")
		}
		h.checkKey(SlotCardAuth, alg, template)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.PrivateKey{p521, "no key", nil} {
		if err := h.card.Put(SlotCardAuth, key, PINPolicyDefault, TouchPolicyDefault); err == nil {
			t.Errorf("the card takes a %T", key)
		}
	}
	if err := newCard(Config{Plain: true}, nil).Put(SlotCardAuth, ed, PINPolicyDefault, TouchPolicyDefault); err == nil {
		t.Error("a plain card takes an Ed25519 key")
	}
}

// A card that is no YubiKey has the standard's commands and no others.
func TestPlain(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{Plain: true})
	for _, ins := range []byte{insVersion, insSerial, insMetadata, insAttest, insImport, insSetTries, insReset, insMoveKey} {
		h.want(swUnknownINS, ins, 0, SlotAuthentication, nil)
	}
	h.admin()
	h.want(swWrongData, insGenerate, 0, SlotAuthentication, encode(0xAC, encode(0x80, []byte{AlgEd25519})))
	h.want(swWrongData, insGenerate, 0, SlotAuthentication,
		encode(0xAC, encode(0x80, []byte{AlgP256}), encode(0xAA, []byte{PINPolicyNever})))
	answer := h.want(swOK, insGenerate, 0, SlotAuthentication, encode(0xAC, encode(0x80, []byte{AlgP256})))
	template, ok := decodeOnly(0x7F49, answer)
	if !ok {
		t.Fatalf("answer % X is no template 7F49", answer)
	}
	h.pin(swOK, DefaultPIN)
	h.checkKey(SlotAuthentication, AlgP256, template)
	h.object(swNotFound, []byte{0x5F, 0xFF, 1})
	h.want(swNotFound, insSelect, 4, 0, []byte(aidManagement))
}

// What the card refuses, each from the same state: nothing verified, a P-256 key in 9A and 9C.
func TestRefusals(t *testing.T) {
	t.Parallel()
	sign := encode(0x7C, encode(0x82), encode(0x81, make([]byte, 32)))
	auth := func(h *host) { h.admin() }
	pin := func(h *host) { h.pin(swOK, DefaultPIN) }
	for _, c := range []struct {
		name        string
		before      func(*host)
		ins, p1, p2 byte
		data        []byte
		status      sw
	}{
		{"unknown command", nil, 0xCA, 0, 0, nil, swUnknownINS},
		{"unknown applet", nil, insSelect, 4, 0, []byte("12345678"), swNotFound},
		{"sign without PIN", nil, insAuthenticate, AlgP256, SlotAuthentication, sign, swSecurity},
		{"sign with another algorithm", pin, insAuthenticate, AlgP384, SlotAuthentication, sign, swWrongData},
		{"sign in an empty slot", pin, insAuthenticate, AlgP256, SlotRetired1, sign, swWrongData},
		{"sign with the attestation key", pin, insAuthenticate, AlgP256, SlotAttestation, sign, swSecurity},
		{"sign a long digest", pin, insAuthenticate, AlgP256, SlotAuthentication,
			encode(0x7C, encode(0x82), encode(0x81, make([]byte, 33))), swWrongData},
		{"sign and agree at once", pin, insAuthenticate, AlgP256, SlotAuthentication,
			encode(0x7C, encode(0x81, make([]byte, 32)), encode(0x85, make([]byte, 65))), swWrongData},
		{"agree on a point off the curve", pin, insAuthenticate, AlgP256, SlotAuthentication,
			encode(0x7C, encode(0x85, append([]byte{4}, make([]byte, 64)...))), swWrongData},
		{"template of another tag", pin, insAuthenticate, AlgP256, SlotAuthentication, encode(0x7D), swWrongData},
		{"tag twice", pin, insAuthenticate, AlgP256, SlotAuthentication,
			encode(0x7C, encode(0x81, make([]byte, 32)), encode(0x81, make([]byte, 32))), swWrongData},
		{"trailing bytes", pin, insAuthenticate, AlgP256, SlotAuthentication, append(sign[:len(sign):len(sign)], 0), swWrongData},
		{"generate without management key", pin, insGenerate, 0, SlotAuthentication, nil, swSecurity},
		{"generate in no slot", auth, insGenerate, 0, 0x99, encode(0xAC, encode(0x80, []byte{AlgP256})), swYubicoP1P2},
		{"generate an unknown algorithm", auth, insGenerate, 0, SlotAuthentication, encode(0xAC, encode(0x80, []byte{1})), swWrongData},
		{"generate with an unknown policy", auth, insGenerate, 0, SlotAuthentication,
			encode(0xAC, encode(0x80, []byte{AlgP256}), encode(0xAA, []byte{4})), swWrongData},
		{"import without management key", pin, insImport, AlgP256, SlotAuthentication, nil, swSecurity},
		{"put data without management key", pin, insPutData, 0x3F, 0xFF, nil, swSecurity},
		{"put too much data", auth, insPutData, 0x3F, 0xFF,
			join(encode(0x5C, []byte{0x5F, 0xC1, 5}), encode(0x53, make([]byte, maxObject+1))), swNoSpace},
		{"put data in no object", auth, insPutData, 0x3F, 0xFF, join(encode(0x5C, []byte{1, 2, 3}), encode(0x53, []byte{1})), swWrongData},
		{"get what is not there", nil, insGetData, 0x3F, 0xFF, encode(0x5C, []byte{0x5F, 0xC1, 5}), swNotFound},
		{"get printed information without PIN", nil, insGetData, 0x3F, 0xFF, encode(0x5C, []byte{0x5F, 0xC1, 9}), swSecurity},
		{"set management key without the old", pin, insSetManage, 0xFF, 0xFF, nil, swSecurity},
		{"set a short management key", auth, insSetManage, 0xFF, 0xFF, []byte{AlgAES192, SlotManagement, 1, 1}, swWrongData},
		{"set tries without PIN", auth, insSetTries, 5, 5, nil, swSecurity},
		{"set tries without management key", pin, insSetTries, 5, 5, nil, swSecurity},
		{"reset a working card", nil, insReset, 0, 0, nil, swConditions},
		{"attest an empty slot", nil, insAttest, SlotRetired1, 0, nil, swWrongData},
		{"attest the attestation key", nil, insAttest, SlotAttestation, 0, nil, swWrongData},
		{"metadata of an empty slot", nil, insMetadata, 0, SlotRetired1, nil, swNoReference},
		{"move without management key", pin, insMoveKey, SlotRetired1, SlotAuthentication, nil, swSecurity},
		{"move to an occupied slot", auth, insMoveKey, SlotSignature, SlotAuthentication, nil, swConditions},
		{"move from an empty slot", auth, insMoveKey, SlotRetired1, SlotRetired20, nil, swNoReference},
		{"move the attestation key", auth, insMoveKey, SlotRetired1, SlotAttestation, nil, swYubicoP1P2},
		{"answer a witness nobody asked for", nil, insAuthenticate, AlgAES192, SlotManagement,
			encode(0x7C, encode(0x80, make([]byte, 16)), encode(0x81, make([]byte, 16))), swWrongData},
		{"another management algorithm", nil, insAuthenticate, AlgTDES, SlotManagement, encode(0x7C, encode(0x80)), swYubicoP1P2},
		{"wrong PIN", nil, insVerify, 0, refPIN, padded("999999"), swTries | 2},
		{"short PIN block", nil, insVerify, 0, refPIN, []byte("123456"), swWrongData},
		{"verify the PUK", nil, insVerify, 0, refPUK, padded("123456"), swNoReference},
		{"short new PIN", nil, insChange, 0, refPIN, append(padded(DefaultPIN), padded("12345")...), swWrongData},
		{"wrong PUK", nil, insUnblock, 0, refPIN, append(padded("99999999"), padded(DefaultPIN)...), swTries | 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, Config{})
			h.generate(SlotAuthentication, AlgP256, PINPolicyDefault, TouchPolicyDefault)
			h.generate(SlotSignature, AlgP256, PINPolicyDefault, TouchPolicyDefault)
			if c.before != nil {
				c.before(h)
			}
			h.want(c.status, c.ins, c.p1, c.p2, c.data)
		})
	}
}

func TestWrongManagementKey(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.want(swOK, insAuthenticate, AlgAES192, SlotManagement, encode(0x7C, encode(0x80)))
	guess := encode(0x7C, encode(0x80, make([]byte, 16)), encode(0x81, make([]byte, 16)))
	h.want(swSecurity, insAuthenticate, AlgAES192, SlotManagement, guess)
	h.want(swWrongData, insAuthenticate, AlgAES192, SlotManagement, guess) // a witness serves once
}

func TestManagementKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		config Config
		alg    byte
		size   int
		status sw
	}{
		{"AES-128", Config{}, AlgAES128, 16, swOK},
		{"AES-192", Config{}, AlgAES192, 24, swOK},
		{"AES-256", firmware54, AlgAES256, 32, swOK},
		{"TDES", Config{}, AlgTDES, 24, swOK},
		{"TDES on old firmware", firmware43, AlgTDES, 24, swOK},
		{"AES on old firmware", firmware52, AlgAES128, 16, swWrongData},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, c.config)
			h.admin()
			key := random(c.size)
			h.want(c.status, insSetManage, 0xFF, 0xFF, append([]byte{c.alg, SlotManagement, byte(c.size)}, key...))
			h.card.Reset()
			h.want(swOK, insSelect, 4, 0, []byte(aidPIV))
			h.admin()
		})
	}
}

// The host proves the key alone, without the card proving it.
func TestSingleAuthentication(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	answer := h.want(swOK, insAuthenticate, AlgAES192, SlotManagement, encode(0x7C, encode(0x81)))
	block := managementCipher(AlgAES192, []byte(DefaultManagementKey))
	h.want(swOK, insAuthenticate, AlgAES192, SlotManagement, encode(0x7C, encode(0x82, crypt(block.Encrypt, answer[4:]))))
	h.want(swOK, insGenerate, 0, SlotRetired1, encode(0xAC, encode(0x80, []byte{AlgP256})))
}

func TestPINPolicies(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.generate(SlotRetired1, AlgP256, PINPolicyNever, TouchPolicyNever)
	h.generate(SlotAuthentication, AlgP256, PINPolicyOnce, TouchPolicyNever)
	h.generate(SlotSignature, AlgP256, PINPolicyDefault, TouchPolicyNever) // always
	digest := make([]byte, 32)
	h.use(swOK, AlgP256, SlotRetired1, 0x81, digest)
	h.use(swSecurity, AlgP256, SlotAuthentication, 0x81, digest)
	h.pin(swOK, DefaultPIN)
	h.use(swOK, AlgP256, SlotAuthentication, 0x81, digest)
	h.use(swOK, AlgP256, SlotAuthentication, 0x81, digest)
	h.use(swSecurity, AlgP256, SlotSignature, 0x81, digest)
	h.pin(swOK, DefaultPIN)
	h.use(swOK, AlgP256, SlotSignature, 0x81, digest)
	h.use(swSecurity, AlgP256, SlotSignature, 0x81, digest)
	h.pin(swOK, DefaultPIN)
	h.want(swOK, insVerify, 0, refPIN, nil) // any command between takes the permission
	h.use(swSecurity, AlgP256, SlotSignature, 0x81, digest)
	h.want(swOK, insSelect, 4, 0, []byte(aidPIV))
	h.use(swOK, AlgP256, SlotAuthentication, 0x81, digest) // selecting again keeps the PIN
	h.want(swOK, insVerify, 0xFF, refPIN, nil)
	h.use(swSecurity, AlgP256, SlotAuthentication, 0x81, digest)
	h.pin(swOK, DefaultPIN)
	h.want(swOK, insSelect, 4, 0, []byte(aidManagement))
	h.want(swOK, insSelect, 4, 0, []byte(aidPIV))
	h.use(swSecurity, AlgP256, SlotAuthentication, 0x81, digest) // another applet loses it
}

// A chained command is one command: PIN policy "always" allows an RSA signature sent in two parts.
func TestPINAlwaysChained(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.generate(SlotSignature, AlgRSA2048, PINPolicyAlways, TouchPolicyNever)
	h.pin(swOK, DefaultPIN)
	h.use(swOK, AlgRSA2048, SlotSignature, 0x81, make([]byte, 256))
}

func TestTries(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.want(swTries|3, insVerify, 0, refPIN, nil)
	h.pin(swTries|2, "000000")
	h.pin(swOK, DefaultPIN)
	h.want(swOK, insVerify, 0, refPIN, nil)
	h.pin(swTries|2, "000000")
	h.want(swTries|2, insVerify, 0, refPIN, nil) // a wrong PIN takes the verified state
	h.pin(swTries|1, "000000")
	h.pin(swTries, "000000")
	h.pin(swBlocked, DefaultPIN)
	h.want(swBlocked, insVerify, 0, refPIN, nil)
	h.want(swOK, insUnblock, 0, refPIN, append(padded(DefaultPUK), padded("7654321")...))
	h.pin(swOK, "7654321")
	h.want(swOK, insChange, 0, refPIN, append(padded("7654321"), padded("111111")...))
	h.want(swOK, insChange, 0, refPUK, append(padded(DefaultPUK), padded("87654321")...))
	h.admin()
	h.pin(swOK, "111111")
	h.want(swOK, insSetTries, 5, 6, nil)
	if got := h.want(swOK, insMetadata, 0, refPUK, nil); !bytes.Equal(got, []byte{1, 1, 0xFF, 5, 1, 1, 6, 2, 6, 6}) {
		t.Errorf("metadata of the PUK: % X", got)
	}
	h.pin(swTries|4, "111111")
	h.pin(swOK, DefaultPIN)
}

func TestReset(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.generate(SlotAuthentication, AlgP256, PINPolicyNever, TouchPolicyNever)
	h.card.SetObject(0x5FC105, []byte("certificate"))
	h.card.BlockPIN()
	h.want(swConditions, insReset, 0, 0, nil)
	h.card.BlockPUK()
	h.want(swBlocked, insUnblock, 0, refPIN, append(padded(DefaultPUK), padded(DefaultPIN)...))
	h.want(swOK, insReset, 0, 0, nil)
	h.pin(swOK, DefaultPIN)
	h.object(swNotFound, []byte{0x5F, 0xC1, 5})
	h.object(swOK, []byte{0x5F, 0xFF, 1})
	h.want(swNoReference, insMetadata, 0, SlotAuthentication, nil)
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.generate(SlotRetired20, AlgP256, PINPolicyAlways, TouchPolicyCached)
	got, ok := decodeAll(h.want(swOK, insMetadata, 0, SlotRetired20, nil))
	if !ok || !bytes.Equal(got[1], []byte{AlgP256}) || !bytes.Equal(got[2], []byte{PINPolicyAlways, TouchPolicyCached}) ||
		!bytes.Equal(got[3], []byte{originGenerated}) || len(got[4]) != 67 {
		t.Errorf("metadata of a key: %x", got)
	}
	for name, c := range map[string]struct {
		ref  byte
		want []byte
	}{
		"PIN":            {refPIN, []byte{1, 1, 0xFF, 5, 1, 1, 6, 2, 3, 3}},
		"management key": {SlotManagement, []byte{1, 1, AlgAES192, 2, 2, 0, TouchPolicyNever, 5, 1, 1}},
	} {
		if got := h.want(swOK, insMetadata, 0, c.ref, nil); !bytes.Equal(got, c.want) {
			t.Errorf("metadata of the %s: % X, want % X", name, got, c.want)
		}
	}
}

// Commands and algorithms came with a firmware; before it they are unknown.
func TestFirmware(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		config       Config
		serial       sw
		metadata     sw
		move         sw
		ed25519      sw
		managementBy byte
	}{
		{firmware43, swUnknownINS, swUnknownINS, swUnknownINS, swWrongData, AlgTDES},
		{firmware52, swOK, swUnknownINS, swUnknownINS, swWrongData, AlgTDES},
		{firmware54, swOK, swOK, swUnknownINS, swWrongData, AlgTDES},
		{Config{}, swOK, swOK, swNoReference, swOK, AlgAES192},
	} {
		t.Run(fmt.Sprint(c.config.Version), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, c.config)
			if h.card.state.management.alg != c.managementBy {
				t.Errorf("management key of algorithm %02X", h.card.state.management.alg)
			}
			h.want(c.serial, insSerial, 0, 0, nil)
			h.want(c.metadata, insMetadata, 0, refPIN, nil)
			h.admin()
			h.want(c.move, insMoveKey, 0xFF, SlotRetired1, nil)
			h.want(c.ed25519, insGenerate, 0, SlotRetired1, encode(0xAC, encode(0x80, []byte{AlgEd25519})))
		})
	}
}

func TestMoveAndDelete(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.generate(SlotAuthentication, AlgP256, PINPolicyNever, TouchPolicyNever)
	public, err := h.card.PublicKey(SlotAuthentication)
	if err != nil {
		t.Fatal(err)
	}
	h.admin()
	h.want(swOK, insMoveKey, SlotRetired1, SlotAuthentication, nil)
	moved, err := h.card.PublicKey(SlotRetired1)
	if err != nil || !moved.(*ecdsa.PublicKey).Equal(public) {
		t.Errorf("after the move: %v, %v", moved, err)
	}
	h.want(swOK, insMoveKey, 0xFF, SlotRetired1, nil)
	if _, err := h.card.PublicKey(SlotRetired1); err == nil {
		t.Error("a deleted key is still there")
	}
}

func TestObjects(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.admin()
	name := []byte{0x5F, 0xC1, 0x05}
	value := random(maxObject)
	h.want(swOK, insPutData, 0x3F, 0xFF, join(encode(0x5C, name), encode(0x53, value)))
	if got := h.object(swOK, name); !bytes.Equal(got, encode(0x53, value)) {
		t.Error("an object comes back changed")
	}
	h.want(swOK, insPutData, 0x3F, 0xFF, join(encode(0x5C, name), encode(0x53)))
	h.object(swNotFound, name)
	if got := h.object(swOK, []byte{0x7E}); len(got) != 20 {
		t.Errorf("discovery object: % X", got)
	}
}

// A short answer length is served in parts, an extended one at once.
func TestAnswerLengths(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.card.SetObject(0x5FC105, make([]byte, 600))
	name := []byte{0x5C, 3, 0x5F, 0xC1, 5}
	short := append([]byte{0, insGetData, 0x3F, 0xFF, 5}, name...)
	total := len(encode(0x53, make([]byte, 600)))
	data, status := h.raw(append(short, 0))
	if len(data) != 256 || status != swMore {
		t.Errorf("first part: %d bytes, %04X", len(data), status)
	}
	if data, status = h.raw([]byte{0, insGetResponse, 0, 0, 0}); len(data) != 256 || status != swMore|sw(total-512) {
		t.Errorf("second part: %d bytes, %04X", len(data), status)
	}
	if data, status = h.raw([]byte{0, insGetResponse, 0, 0, byte(total - 512)}); len(data) != total-512 || status != swOK {
		t.Errorf("last part: %d bytes, %04X", len(data), status)
	}
	if _, status = h.raw([]byte{0, insGetResponse, 0, 0, 0}); status != swConditions {
		t.Errorf("after the last part: %04X", status)
	}
	extended := append(append([]byte{0, insGetData, 0x3F, 0xFF, 0, 0, 5}, name...), 0, 0)
	if data, status = h.raw(extended); len(data) != total || status != swOK {
		t.Errorf("extended: %d bytes, %04X", len(data), status)
	}
}

func TestMalformedAPDUs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		apdu   []byte
		status sw
	}{
		"empty":                   {nil, swWrongLength},
		"three bytes":             {[]byte{0, 0xFD, 0}, swWrongLength},
		"length too long":         {[]byte{0, 0x20, 0, 0x80, 8, 1, 2}, swWrongLength},
		"bytes after Le":          {[]byte{0, 0xCB, 0x3F, 0xFF, 1, 2, 3, 4}, swWrongLength},
		"extended, too long":      {[]byte{0, 0xCB, 0x3F, 0xFF, 0, 0, 9, 1}, swWrongLength},
		"extended, nothing":       {[]byte{0, 0xCB, 0x3F, 0xFF, 0, 0, 0, 1, 1}, swWrongLength},
		"secure messaging":        {[]byte{0x0C, 0xCB, 0x3F, 0xFF}, swUnknownCLA},
		"version, no Le":          {[]byte{0, 0xFD, 0, 0}, swOK},
		"version, with Le":        {[]byte{0, 0xFD, 0, 0, 0}, swOK},
		"version, extended Le":    {[]byte{0, 0xFD, 0, 0, 0, 0, 0}, swOK},
		"chained part of nothing": {[]byte{0x10, 0xFD, 0, 0}, swOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, Config{})
			if _, status := h.raw(c.apdu); status != c.status {
				t.Errorf("got %04X, want %04X", status, c.status)
			}
		})
	}
}

// Parts of one command do not leak into another; a command longer than the card's memory is refused.
func TestChaining(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.raw([]byte{claMore, insVerify, 0, refPIN, 2, '9', '9'})
	h.want(swOK, insVersion, 0, 0, nil)
	h.pin(swOK, DefaultPIN)
	h.generate(SlotAuthentication, AlgEd25519, PINPolicyNever, TouchPolicyNever)
	if _, status := h.do(insAuthenticate, AlgEd25519, SlotAuthentication, make([]byte, maxMessage+1)); status != swNoSpace {
		t.Errorf("a message too long: %04X", status)
	}
	h.use(swOK, AlgEd25519, SlotAuthentication, 0x81, make([]byte, 2900))
}

func TestAttestation(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{Serial: 1234567})
	for _, alg := range []byte{AlgP256, AlgP384, AlgRSA2048, AlgEd25519, AlgX25519} {
		h.generate(SlotAuthentication, alg, PINPolicyOnce, TouchPolicyCached)
		cert, err := x509.ParseCertificate(h.want(swOK, insAttest, SlotAuthentication, 0, nil))
		if err != nil {
			t.Fatal(err)
		}
		h.checkStatement(cert)
	}
}

func (h *host) checkStatement(cert *x509.Certificate) {
	h.t.Helper()
	stored, ok := decodeOnly(0x53, h.object(swOK, []byte{0x5F, 0xFF, 1}))
	if !ok {
		h.t.Fatal("no attestation certificate")
	}
	device, err := x509.ParseCertificate(stored[0x70])
	if err != nil {
		h.t.Fatal(err)
	}
	roots, middle := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(h.card.AttestationRoot())
	middle.AddCert(device)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle}); err != nil {
		h.t.Error(err)
	}
	stated, err := x509.ParsePKIXPublicKey(cert.RawSubjectPublicKeyInfo) // cert.PublicKey is nil for X25519
	if err != nil {
		h.t.Fatal(err)
	}
	public, err := h.card.PublicKey(SlotAuthentication)
	if err != nil || !public.(interface{ Equal(crypto.PublicKey) bool }).Equal(stated) {
		h.t.Errorf("the statement is about another key: %T, %v", stated, err)
	}
	serial, err := asn1.Marshal(1234567)
	if err != nil {
		h.t.Fatal(err)
	}
	want := map[string][]byte{
		oidFirmware.String(): {5, 7, 1}, oidSerial.String(): serial,
		oidPolicy.String(): {PINPolicyOnce, TouchPolicyCached}, oidFormFactor.String(): {formFactor},
	}
	for _, e := range cert.Extensions {
		if value, known := want[e.Id.String()]; known && bytes.Equal(value, e.Value) {
			delete(want, e.Id.String())
		}
	}
	if len(want) > 0 {
		h.t.Errorf("missing or wrong extensions: %x", want)
	}
}

func TestTouch(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	h := newHost(t, Config{Now: func() time.Time { return now }})
	h.generate(SlotAuthentication, AlgP256, PINPolicyNever, TouchPolicyAlways)
	h.generate(SlotCardAuth, AlgP256, PINPolicyNever, TouchPolicyCached)
	digest := make([]byte, 32)
	sign := func(slot byte, status sw, touches int) {
		t.Helper()
		h.use(status, AlgP256, slot, 0x81, digest)
		if got := h.card.Touches(); got != touches {
			t.Fatalf("%d touches, want %d", got, touches)
		}
	}
	sign(SlotAuthentication, swOK, 1)
	sign(SlotAuthentication, swOK, 2)
	sign(SlotCardAuth, swOK, 2) // still cached
	now = now.Add(touchCache)
	sign(SlotCardAuth, swOK, 3)
	now = now.Add(touchCache - 1)
	h.card.SetTouch(TouchRefused)
	sign(SlotCardAuth, swOK, 3)
	sign(SlotAuthentication, swSecurity, 3)
	now = now.Add(1)
	sign(SlotCardAuth, swSecurity, 3)
}

func TestTouchAwaited(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.generate(SlotAuthentication, AlgP256, PINPolicyNever, TouchPolicyAlways)
	h.card.SetTouch(TouchAwaited)
	apdu := append([]byte{0, insAuthenticate, AlgP256, SlotAuthentication, 38},
		encode(0x7C, encode(0x82), encode(0x81, make([]byte, 32)))...)
	for name, c := range map[string]struct {
		end  func()
		want func([]byte) bool
	}{
		"touched":  {func() { h.card.Answer(true) }, func(b []byte) bool { return bytes.HasSuffix(b, []byte{0x90, 0}) }},
		"given up": {func() { h.card.Answer(false) }, func(b []byte) bool { return bytes.Equal(b, []byte{0x69, 0x82}) }},
		"reset":    {h.card.Reset, func(b []byte) bool { return b == nil }},
	} {
		h.want(swOK, insSelect, 4, 0, []byte(aidPIV))
		answer := make(chan []byte)
		go func() { answer <- h.card.Transmit(apdu) }()
		<-h.card.TouchWaits()
		c.end()
		if got := <-answer; !c.want(got) {
			t.Errorf("%s: answer % X", name, got)
		}
	}
}

func TestTouchTimeout(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{TouchTimeout: time.Millisecond})
	h.generate(SlotAuthentication, AlgP256, PINPolicyNever, TouchPolicyAlways)
	h.card.SetTouch(TouchAwaited)
	h.use(swSecurity, AlgP256, SlotAuthentication, 0x81, make([]byte, 32))
}

func TestHook(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	h.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		if apdu[1] == insVersion {
			return nil
		}
		return append([]byte{0xFF}, card(apdu)...)
	})
	if got := h.card.Transmit([]byte{0, insVersion, 0, 0}); got != nil {
		t.Errorf("mute card answers % X", got)
	}
	if got := h.card.Transmit([]byte{0, insSerial, 0, 0}); len(got) != 7 || got[0] != 0xFF {
		t.Errorf("lying card answers % X", got)
	}
	h.card.OnAPDU(nil)
	h.want(swOK, insVersion, 0, 0, nil)
	if total, versions := h.card.Commands(), h.card.Count(insVersion); total != 4 || versions != 2 {
		t.Errorf("counted %d commands, %d of them for the version", total, versions)
	}
}

// Before PIV is selected, and in the neighbours of PIV, its commands are unknown.
func TestApplets(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{Serial: 0x01020304})
	h.want(swOK, insSelect, 4, 0, []byte(aidOTP))
	h.want(swUnknownINS, insVersion, 0, 0, nil)
	if got := h.want(swOK, 0x01, 0x10, 0, nil); !bytes.Equal(got, []byte{1, 2, 3, 4}) {
		t.Errorf("serial number of the OTP applet: % X", got)
	}
	h.want(swOK, insSelect, 4, 0, []byte(aidManagement))
	if got := h.want(swOK, 0x1D, 0, 0, nil); len(got) < 2 || int(got[0]) != len(got)-1 {
		t.Errorf("device information: % X", got)
	}
	h.card.Reset()
	h.want(swUnknownINS, insVersion, 0, 0, nil)
	h.want(swOK, insSelect, 4, 0, []byte(aidPIV[:5]))
	h.want(swOK, insVersion, 0, 0, nil)
}

// No sequence of commands makes the card panic, and every answer has a status word.
// The input is a list of APDUs with a length byte before each; 00 resets the card.
func FuzzCard(f *testing.F) {
	seed := func(apdus ...[]byte) {
		var b []byte
		for _, a := range apdus {
			b = append(append(b, byte(len(a))), a...)
		}
		f.Add(b)
	}
	selectPIV := append([]byte{0, insSelect, 4, 0, 11}, aidPIV...)
	verify := append([]byte{0, insVerify, 0, refPIN, 8}, padded(DefaultPIN)...)
	seed(selectPIV, verify, append([]byte{0, insAuthenticate, AlgP256, SlotAuthentication, 38},
		encode(0x7C, encode(0x82), encode(0x81, make([]byte, 32)))...))
	seed(selectPIV, append([]byte{claMore, insGetData, 0x3F, 0xFF, 2}, 0x5C, 3), []byte{0, insGetData, 0x3F, 0xFF, 0, 0, 3, 0x5F, 0xFF, 1}, []byte{0, insGetResponse, 0, 0, 0})
	seed(selectPIV, []byte{0, insMetadata, 0, SlotAttestation}, []byte{0, insAttest, SlotAuthentication, 0}, nil, verify)
	seed(selectPIV, append([]byte{0, insAuthenticate, AlgAES192, SlotManagement, 4}, encode(0x7C, encode(0x80))...))
	seed(selectPIV, append([]byte{0, insImport, AlgP256, SlotRetired1, 34}, encode(6, bytes.Repeat([]byte{1}, 32))...))
	seed(selectPIV, append([]byte{0, insPutData, 0x3F, 0xFF, 8}, 0x5C, 3, 0x5F, 0xC1, 5, 0x53, 1, 1))
	// generateKey is the only slow command: the keys are made here, once.
	card := NewCard(Config{})
	for slot, alg := range map[byte]byte{SlotAuthentication: AlgP256, SlotKeyManagement: AlgX25519, SlotCardAuth: AlgEd25519} {
		if _, err := card.Generate(slot, alg, PINPolicyOnce, TouchPolicyDefault); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newCard(card.config, card.state.attestation)
		for slot, key := range card.state.keys {
			c.state.keys[slot] = key
		}
		for len(b) > 0 {
			n := min(int(b[0]), len(b)-1)
			apdu := b[1 : 1+n]
			b = b[1+n:]
			if n == 0 {
				c.Reset()
			}
			c.mu.Lock()
			c.power.admin = c.power.applet == appletPIV && !bytes.Contains(apdu, []byte{insGenerate})
			c.mu.Unlock()
			if answer := c.Transmit(apdu); len(answer) < 2 {
				t.Fatalf("answer % X to % X", answer, apdu)
			}
		}
	})
}

// decode(encode(x)) is x, and what decodes encodes to the same bytes if its lengths are shortest.
func FuzzTLV(f *testing.F) {
	f.Add(encode(0x7F49, encode(0x86, make([]byte, 200))))
	f.Add(encode(0x53, make([]byte, 300)))
	f.Add([]byte{0x1F, 0x81, 0x81, 0x81, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, rest, ok := decode(b)
		if !ok {
			return
		}
		again, none, ok := decode(encode(v.tag, v.value))
		if !ok || len(none) > 0 || again.tag != v.tag || !bytes.Equal(again.value, v.value) || len(rest) >= len(b) {
			t.Errorf("% X: %v, % X", b, ok, again)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for name, alg := range map[string]byte{"P-256": AlgP256, "RSA-2048": AlgRSA2048} {
		b.Run(name, func(b *testing.B) {
			h := newHost(b, Config{})
			h.generate(SlotCardAuth, alg, PINPolicyNever, TouchPolicyNever)
			data := make([]byte, 32)
			if alg == AlgRSA2048 {
				data = make([]byte, 256)
				data[255] = 2
			}
			b.ReportAllocs()
			for b.Loop() {
				h.use(swOK, alg, SlotCardAuth, 0x81, data)
			}
		})
	}
}
