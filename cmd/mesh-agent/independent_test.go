package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	endian "encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// What follows makes the objects of the Mesh a second time, from the drafts and the published data, with
// big numbers and without any package of this module: what is made here by an administrator who
// is another program, the program under test has to take, and what is made wrong, to refuse. It is not in
// constant time and not for use.

// Curve448 (RFC 7748, Section 4.2) in affine coordinates, with both.
var (
	ind448P = sub(sub(pow2(448), pow2(224)), big.NewInt(1))
	ind448L = sub(pow2(446), hexNumber("8335dc163bb124b65129c96fde933d8d723a70aadc873d6d54a7bb0d"))
	ind448A = big.NewInt(156326)
	ind448G = indPoint{big.NewInt(5), hexNumber("7d235d1295f5b1f66c98ab6e58326fcecbae5d34f55545d060f75dc28df3f6edb8027e2346430d211312c4b150677af76fd7223d457b5b1a")}
	// Edwards448-Goldilocks (RFC 8032, Section 5.2).
	indEdD = new(big.Int).Mod(big.NewInt(-39081), ind448P)
	indEdG = indPoint{
		hexNumber("4f1970c66bed0ded221d15a622bf36da9e146570470f1767ea6de324a3d3a46412ae1af72ab66511433b80e18b00938e2626a82bc70cc05e"),
		hexNumber("693f46716eb6bc248876203756c9c7624bea73736ca3984087789c1e05a0c2d73ad3ff1ce67c39c4fdbd132c4ed7c8ad9808795bf230fa14"),
	}
)

func hexNumber(text string) *big.Int {
	n, ok := new(big.Int).SetString(text, 16)
	if !ok {
		panic(text)
	}
	return n
}

func pow2(n uint) *big.Int        { return new(big.Int).Lsh(big.NewInt(1), n) }
func sub(a, b *big.Int) *big.Int  { return new(big.Int).Sub(a, b) }
func mulP(a, b *big.Int) *big.Int { c := new(big.Int).Mul(a, b); return c.Mod(c, ind448P) }
func subP(a, b *big.Int) *big.Int { c := sub(a, b); return c.Mod(c, ind448P) }
func divP(a, b *big.Int) *big.Int { return mulP(a, new(big.Int).ModInverse(b, ind448P)) }

// littleEndian writes n octets.
func littleEndian(x *big.Int, n int) []byte {
	out := x.FillBytes(make([]byte, n))
	slices.Reverse(out)
	return out
}

func fromLittle(b []byte) *big.Int {
	b = bytes.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// indPoint is a point of one of the curves; nil coordinates are the point at infinity of Curve448.
type indPoint struct{ x, y *big.Int }

func add448(p, q indPoint) indPoint {
	switch {
	case p.x == nil:
		return q
	case q.x == nil:
		return p
	case p.x.Cmp(q.x) == 0 && p.y.Cmp(q.y) != 0:
		return indPoint{}
	}
	slope := new(big.Int)
	if p.x.Cmp(q.x) == 0 {
		top := mulP(big.NewInt(3), mulP(p.x, p.x))
		top.Add(top, mulP(big.NewInt(2), mulP(ind448A, p.x))).Add(top, big.NewInt(1))
		slope = divP(top, mulP(big.NewInt(2), p.y))
	} else {
		slope = divP(subP(q.y, p.y), subP(q.x, p.x))
	}
	x := subP(subP(subP(mulP(slope, slope), ind448A), p.x), q.x)
	return indPoint{x, subP(mulP(slope, subP(p.x, x)), p.y)}
}

func addEd(p, q indPoint) indPoint {
	t := mulP(indEdD, mulP(mulP(p.x, q.x), mulP(p.y, q.y)))
	one := big.NewInt(1)
	x := divP(new(big.Int).Add(mulP(p.x, q.y), mulP(q.x, p.y)), new(big.Int).Add(one, t))
	return indPoint{x, divP(subP(mulP(p.y, q.y), mulP(p.x, q.x)), subP(one, t))}
}

func multiply[P any](add func(p, q P) P, zero P, k *big.Int, p P) P {
	out := zero
	for i := k.BitLen() - 1; i >= 0; i-- {
		if out = add(out, out); k.Bit(i) == 1 {
			out = add(out, p)
		}
	}
	return out
}

func mul448(k *big.Int, p indPoint) indPoint { return multiply(add448, indPoint{}, k, p) }

// mulEd divides at the end only: its points are x/z and y/z (RFC 8032, Section 5.2.4).
func mulEd(k *big.Int, p indPoint) indPoint {
	type point struct{ x, y, z *big.Int }
	one := big.NewInt(1)
	sum := multiply(func(p, q point) point {
		a, c, d := mulP(p.z, q.z), mulP(p.x, q.x), mulP(p.y, q.y)
		b, e := mulP(a, a), mulP(indEdD, mulP(c, d))
		f, g := subP(b, e), new(big.Int).Add(b, e)
		h := mulP(new(big.Int).Add(p.x, p.y), new(big.Int).Add(q.x, q.y))
		return point{mulP(mulP(a, f), subP(subP(h, c), d)), mulP(mulP(a, g), subP(d, c)), mulP(f, g)}
	}, point{new(big.Int), one, one}, k, point{p.x, p.y, one})
	return indPoint{divP(sum.x, sum.z), divP(sum.y, sum.z)}
}

// octets of a point: coordinate and, in the highest bit of the last octet, whether the other one is odd.
func (p indPoint) octets(edwards bool) []byte {
	main, sign := p.x, p.y
	if edwards {
		main, sign = p.y, p.x
	}
	return append(littleEndian(main, 56), byte(sign.Bit(0))<<7)
}

// indKey is a key on one of the two curves.
type indKey struct {
	edwards bool
	okm     []byte // of a key of its own; nil of a sum
	scalar  *big.Int
	prefix  []byte
	point   indPoint
}

func (k *indKey) public() []byte { return k.point.octets(k.edwards) }

func (k *indKey) curve() string {
	if k.edwards {
		return "Ed448"
	}
	return "X448"
}

func newIndKey(edwards bool, okm []byte) *indKey {
	k := &indKey{edwards: edwards, okm: okm}
	octets := bytes.Clone(okm)
	if edwards {
		h := sha3.SumSHAKE256(okm, 114)
		octets, k.prefix = h[:56], h[57:]
	}
	octets[0] &= 0xfc
	octets[55] |= 0x80
	k.scalar = fromLittle(octets)
	if edwards {
		k.point = mulEd(k.scalar, indEdG)
	} else {
		k.point = mul448(k.scalar, ind448G)
	}
	return k
}

// plus is the sum of two keys.
func (k *indKey) plus(other *indKey) *indKey {
	sum := &indKey{edwards: k.edwards, scalar: new(big.Int).Add(k.scalar, other.scalar)}
	sum.scalar.Mod(sum.scalar, ind448L)
	if k.edwards {
		sum.point = addEd(k.point, other.point)
	} else {
		sum.point = add448(k.point, other.point)
	}
	return sum
}

func edHash(parts ...[]byte) *big.Int {
	h := sha3.SumSHAKE256(bytes.Join(append([][]byte{[]byte("SigEd448\x00\x00")}, parts...), nil), 114)
	n := fromLittle(h)
	return n.Mod(n, ind448L)
}

// sign is RFC 8032, Section 5.2.6.
func (k *indKey) sign(message []byte) []byte {
	r := edHash(k.prefix, message)
	R := mulEd(r, indEdG).octets(true)
	s := new(big.Int).Mul(edHash(R, k.public(), message), k.scalar)
	s.Add(s, r).Mod(s, ind448L)
	return append(R, littleEndian(s, 57)...)
}

// verify is RFC 8032, Section 5.2.7, without its checks of form.
func (k *indKey) verify(message, signature []byte) bool {
	if len(signature) != 114 {
		return false
	}
	h := edHash(signature[:57], k.public(), message)
	minus := indPoint{subP(big.NewInt(0), k.point.x), k.point.y}
	return bytes.Equal(addEd(mulEd(fromLittle(signature[57:]), indEdG), mulEd(h, minus)).octets(true), signature[:57])
}

// indWorld makes objects of one generation.
type indWorld struct{ g2 bool }

// random draws n octets.
func random(n int) []byte {
	out := make([]byte, n)
	rand.Read(out)
	return out
}

func base32Text(octets []byte) string {
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(octets)
	var groups []string
	for len(text) > 4 {
		groups, text = append(groups, text[:4]), text[4:]
	}
	return strings.Join(append(groups, text), "-")
}

// wrapped is base64url as published objects have it, with raw line feeds.
func wrapped(octets []byte) string {
	text := base64.RawURLEncoding.EncodeToString(octets)
	for i := 60; i < len(text); i += 63 {
		text = text[:i] + "\n  " + text[i:]
	}
	return text
}

// indSeed is a seed: identifier and 32 octets.
type indSeed []byte

func newIndSeed(id uint16) indSeed {
	return append(endian.BigEndian.AppendUint16(nil, id), random(32)...)
}

func (s indSeed) text() string { return base32Text(append([]byte{0xc8}, s...)) }

func (w indWorld) key(s indSeed, name string, edwards bool) *indKey {
	ikm := bytes.Clone(s)
	if w.g2 {
		copy(ikm, []byte{0, 2})
		if edwards {
			ikm[1] = 4
		}
	}
	okm, err := hkdf.Key(sha512.New, ikm, nil, string(s[:2])+name, 56)
	if err != nil {
		panic(err)
	}
	return newIndKey(edwards, okm)
}

// udf is the fingerprint of a key, 65 octets.
func (w indWorld) udf(k *indKey) []byte {
	octetString := append([]byte{4, 57}, k.public()...)
	bits := append([]byte{3, 60, 0}, octetString...)
	algorithm := []byte{0x30, 7, 6, 3, 0x2b, 0x65, 0x6f, 5, 0} // X448, NULL
	if k.edwards {
		algorithm[6] = 0x71
	}
	if w.g2 { // that of Ed25519 for all, without NULL
		algorithm = []byte{0x30, 5, 6, 3, 0x2b, 0x65, 0x70}
	}
	info := slices.Concat([]byte{0x30, byte(len(algorithm) + len(bits))}, algorithm, bits)
	digest := sha512.Sum512(info)
	digest = sha512.Sum512(append([]byte("PKIXKey:"), digest[:]...))
	return append([]byte{0x60}, digest[:]...)
}

func (w indWorld) name(k *indKey) string { return base32Text(w.udf(k))[:34] }

// profileName is that of the profile of a root.
func (w indWorld) profileName(root *indKey) string {
	if !w.g2 {
		return w.name(root)
	}
	list := sha512.Sum512(append([]byte{65}, w.udf(root)...))
	digest := sha512.Sum512(append([]byte("UdfList:"), list[:]...))
	return base32Text(append([]byte{0x60, 0x60}, digest[:]...))[:34]
}

// keyData is the public KeyData, and the private one if asked for.
func (w indWorld) keyData(k *indKey, private bool) string {
	text := fmt.Sprintf("{\n  \"Udf\": %q,\n  \"PublicParameters\": {\"PublicKeyECDH\": {\"crv\": %q, \"Public\": \"%s\"}}", w.name(k), k.curve(), wrapped(k.public()))
	if private {
		text += fmt.Sprintf(",\n  \"PrivateParameters\": {\"PrivateKeyECDH\": {\"crv\": %q, \"Private\": \"%s\"}}", k.curve(), wrapped(k.okm))
	}
	return text + "}"
}

// envelope signs a body, which is ciphertext if the header says so.
func (w indWorld) envelope(header string, body []byte, signers ...*indKey) string {
	digest := sha512.Sum512(body)
	manifest, algorithm := digest[:], "S512"
	if w.g2 {
		manifest, algorithm = append([]byte("\x80\x04S512\x88\x40"), digest[:]...), "ED448"
	}
	if len(signers) == 0 {
		return fmt.Sprintf("[{%s}, \"%s\"]", header, wrapped(body))
	}
	var signatures []string
	for _, k := range signers {
		inline := ""
		if w.g2 {
			inline = fmt.Sprintf(`"SignatureKey": {"PublicKeyECDH": {"crv": "Ed448", "Public": "%s"}}, `, wrapped(k.public()))
		}
		signatures = append(signatures, fmt.Sprintf(`{"alg": %q, "kid": %q, %s"signature": "%s"}`, algorithm, w.name(k), inline, wrapped(k.sign(manifest))))
	}
	return fmt.Sprintf("[{%s\"dig\": \"S512\"},\n \"%s\",\n {\"signatures\": [%s], \"PayloadDigest\": \"%s\"}]",
		header, wrapped(body), strings.Join(signatures, ", "), wrapped(digest[:]))
}

// keyWrap is RFC 3394 with a key of 32 octets.
func keyWrap(kek, key []byte) []byte {
	block, err := aes.NewCipher(kek)
	if err != nil {
		panic(err)
	}
	a, out := bytes.Repeat([]byte{0xa6}, 8), bytes.Clone(key)
	for j := range 6 {
		for i := range len(key) / 8 {
			b := append(bytes.Clone(a), out[8*i:8*i+8]...)
			block.Encrypt(b, b)
			copy(out[8*i:], b[8:])
			endian.BigEndian.PutUint64(b, endian.BigEndian.Uint64(b)^uint64(len(key)/8*j+i+1))
			a = b[:8]
		}
	}
	return append(a, out...)
}

// encrypted encrypts a body to a key, and signs what comes of it.
func (w indWorld) encrypted(to *indKey, body []byte, signers ...*indKey) string {
	seed, salt := random(32), random(16)
	ephemeral := newIndKey(false, random(56))
	agreement := mul448(ephemeral.scalar, to.point)
	kek, err := hkdf.Key(sha512.New, littleEndian(agreement.x, 56), nil, "", 32)
	if err != nil {
		panic(err)
	}
	key, _ := hkdf.Key(sha256.New, seed, salt, "encrypt", 32)
	iv, _ := hkdf.Key(sha256.New, seed, salt, "iv", 16)
	block, _ := aes.NewCipher(key)
	n := 16 - len(body)%16
	padded := append(bytes.Clone(body), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(padded, padded)
	header := fmt.Sprintf(`"enc": "A256CBC", "kid": "EBQM-YIA4-PNBW-ECVY-NBBW-CT2Z-WUX2", "Salt": "%s", "recipients": [{"kid": %q, "epk": {"PublicKeyECDH": {"crv": "X448", "Public": "%s"}}, "wmk": "%s"}]`,
		wrapped(salt), w.name(to), wrapped(ephemeral.public()), wrapped(keyWrap(kek, seed)))
	if len(signers) != 0 {
		header += ", "
	}
	return w.envelope(header, padded, signers...)
}

// profile is a profile of any kind, with members after its root.
func (w indWorld) profile(tag string, root *indKey, members string) string {
	first := `"ProfileSignature": ` + w.keyData(root, false)
	if w.g2 {
		first = `"RootUdfs": ["` + wrapped(w.udf(root)) + `"]`
	}
	return w.envelope(fmt.Sprintf(`"EnvelopeId": %q, `, w.profileName(root)), fmt.Appendf(nil, "{\n  %q: {\n    %s,\n    %s}}", tag, first, members), root)
}

// The binary form of JSON: names and strings with their length in an octet.
func binaryName(name string) string   { return "\xb4" + string(rune(len(name))) + name }
func binaryString(text string) string { return "\x80" + string(rune(len(text))) + text }

func (w indWorld) binaryKey(k *indKey) string {
	public := k.public()
	return "{" + binaryName("Udf") + binaryString(w.name(k)) + binaryName("PublicParameters") + "{" + binaryName("PublicKeyECDH") +
		"{" + binaryName("crv") + binaryString(k.curve()) + binaryName("Public") + "\x88" + string(rune(len(public))) + string(public) + "}}}"
}

func (w indWorld) connection(tag string, members ...string) []byte {
	return []byte("{" + binaryName(tag) + "{" + strings.Join(members, "") + "}}")
}

// indDevice is a device made of a seed.
type indDevice struct {
	indWorld
	seed             indSeed
	root             *indKey
	encrypt, sign, a *indKey
	envelope         string
}

func (w indWorld) newDevice() *indDevice {
	d := &indDevice{indWorld: w, seed: newIndSeed(0x0100)}
	d.root = w.key(d.seed, "BaseDeviceProfile", true)
	d.encrypt, d.sign = w.key(d.seed, "BaseDeviceEncrypt", false), w.key(d.seed, "BaseDeviceSign", true)
	d.a = w.key(d.seed, "BaseDeviceAuthenticate", false)
	d.envelope = w.profile("ProfileDevice", d.root, `"Encryption": `+w.keyData(d.encrypt, false)+`, "Signature": `+w.keyData(d.sign, false)+`, "Authentication": `+w.keyData(d.a, false))
	return d
}

// indAccount is an account with its administrator.
type indAccount struct {
	indWorld
	root, admin, encrypt, sign, a, escrow, contacts *indKey
	envelope                                        string
}

func (w indWorld) newAccount() *indAccount {
	seed := newIndSeed(0x0102)
	x := &indAccount{indWorld: w}
	contacts := "MMM_Contact"
	if w.g2 {
		contacts = "Contact"
	}
	for _, k := range []struct {
		to      **indKey
		name    string
		edwards bool
	}{
		{&x.root, "Profile", true}, {&x.admin, "AdminSign", true}, {&x.encrypt, "Encrypt", false}, {&x.sign, "Sign", true},
		{&x.a, "Authenticate", false}, {&x.escrow, "Escrow", false}, {&x.contacts, "Encrypt" + contacts, false},
	} {
		*k.to = w.key(seed, "CompleteAccount"+k.name, k.edwards)
	}
	x.envelope = w.profile("ProfileUser", x.root, `"AccountAddress": "alice@example.com", "EscrowEncryption": `+w.keyData(x.escrow, false)+
		`, "AdministratorSignature": `+w.keyData(x.admin, false)+`, "CommonEncryption": `+w.keyData(x.encrypt, false)+
		`, "CommonAuthentication": `+w.keyData(x.a, false)+`, "CommonSignature": `+w.keyData(x.sign, false))
	return x
}

// indEntry is all that an administrator decides when a device is connected. A change makes a bad entry.
type indEntry struct {
	account                              *indAccount
	device                               *indDevice
	activation                           indSeed
	encrypt, sign, a                     *indKey // combined
	deviceUdf, profileUser               string
	connectionUdf, serviceUdf            string // ProfileUdf
	deviceTag                            string
	serviceAuthentication                *indKey
	connectionSigner, serviceSigner      *indKey
	activationSigner, commonSigner       *indKey
	activationTo, commonTo               *indKey
	activationTag, commonTag, commonBody string
}

func (x *indAccount) newEntry(d *indDevice) *indEntry {
	w := x.indWorld
	e := &indEntry{
		account: x, device: d, activation: newIndSeed(0x0103), deviceUdf: w.profileName(d.root), profileUser: x.envelope,
		connectionUdf: w.profileName(x.root), serviceUdf: w.profileName(x.root), deviceTag: "ConnectionDevice",
		connectionSigner: x.admin, serviceSigner: x.admin, activationSigner: x.admin, commonSigner: x.admin,
		activationTag: "ActivationAccount", commonTag: "ActivationCommon",
	}
	e.encrypt = d.encrypt.plus(w.key(e.activation, "ActivationDeviceEncrypt", false))
	e.sign = d.sign.plus(w.key(e.activation, "ActivationDeviceSign", true))
	e.a = d.a.plus(w.key(e.activation, "ActivationDeviceAuthenticate", false))
	e.serviceAuthentication, e.activationTo, e.commonTo = e.a, d.encrypt, e.encrypt
	contacts := "MMM_Contact"
	if w.g2 {
		contacts = "Contact"
	}
	e.commonBody = fmt.Sprintf(`{"Encryption": %s, "Signature": %s, "Authentication": %s, "Entries": [{"Resource": %q, "Key": %s}]}`,
		w.keyData(x.encrypt, true), w.keyData(x.sign, true), w.keyData(x.a, true), contacts, w.keyData(x.contacts, true))
	return e
}

// text is the CatalogedDevice.
func (e *indEntry) text() string {
	w := e.account.indWorld
	account := func(udf string) string {
		if udf == "" {
			return ""
		}
		return binaryName("ProfileUdf") + binaryString(udf)
	}
	connection := w.connection(e.deviceTag, binaryName("Authentication"), w.binaryKey(e.a), account(e.connectionUdf),
		binaryName("Roles")+"["+binaryString("message")+"]", binaryName("Signature"), w.binaryKey(e.sign), binaryName("Encryption"), w.binaryKey(e.encrypt))
	service := w.connection("ConnectionService", binaryName("Authentication"), w.binaryKey(e.serviceAuthentication), account(e.serviceUdf))
	activation := fmt.Appendf(nil, "{\n  %q: {\n    \"ActivationKey\": %q,\n    \"AccountUdf\": %q}}", e.activationTag, e.activation.text(), w.profileName(e.device.root))
	common := fmt.Appendf(nil, "{\n  %q: %s}", e.commonTag, e.commonBody)
	return fmt.Sprintf(`{"CatalogedDevice": {"DeviceUdf": %q, "EnvelopedProfileUser": %s, "EnvelopedProfileDevice": %s,
 "EnvelopedConnectionService": %s, "EnvelopedConnectionDevice": %s, "EnvelopedActivationAccount": %s, "EnvelopedActivationCommon": %s}}`,
		e.deviceUdf, e.profileUser, e.device.envelope, w.envelope("", service, e.serviceSigner), w.envelope("", connection, e.connectionSigner),
		w.encrypted(e.activationTo, activation, e.activationSigner), w.encrypted(e.commonTo, common, e.commonSigner))
}

// String is for messages of tests.
func (k *indKey) String() string { return hex.EncodeToString(k.public()) }
