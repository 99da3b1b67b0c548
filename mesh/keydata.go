package mesh

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// TagKeyData is the tag of KeyData.
const TagKeyData = "KeyData"

// ContentTypeKeyData is the content type of an envelope that holds {"KeyData":{...}}.
const ContentTypeKeyData = "application/mmm/keydata"

// KeyData is a key as the Mesh writes it (draft-hallambaker-mesh-schema-08, Section 10.1.1).
// Certificates are carried and not looked at.
type KeyData struct {
	Udf               string             `json:",omitzero"` // a claim: see Check
	PublicParameters  *PublicParameters  `json:",omitzero"`
	PrivateParameters *PrivateParameters `json:",omitzero"`
	NotBefore         time.Time          `json:",omitzero"`
	NotOnOrAfter      time.Time          `json:",omitzero"`
	X509Certificate   Binary             `json:",omitzero"`
	X509Chain         []Binary           `json:",omitzero"`
	X509CSR           Binary             `json:",omitzero"`
}

// PrivateParameters is the tagged choice of private key; exactly one member is set. Of
// the last two only a part is here: they are read, and no PrivateKey can be had of them.
type PrivateParameters struct {
	PrivateKeyECDH   *PrivateKeyECDH   `json:",omitzero"`
	PrivateKeyRSA    *PrivateKeyRSA    `json:",omitzero"`
	PrivateKeyUDF    *PrivateKeyUDF    `json:",omitzero"`
	KeyShare         *KeyShare         `json:",omitzero"`
	CompositePrivate *CompositePrivate `json:",omitzero"`
}

// KeyShare is one share of a key, of which a service holds the other
// (draft-hallambaker-mesh-schema-08, Section 10.1.2).
type KeyShare struct {
	PublicPrimary  *PublicParameters  `json:",omitzero"` // the whole key's
	Share          *PrivateParameters `json:",omitzero"`
	ServiceID      string             `json:"ServiceId,omitzero"`
	ServiceAddress string             `json:",omitzero"`
}

// CompositePrivate is a key that is the sum of one bound to a device, which is named only,
// and others (draft-hallambaker-mesh-schema-08, Section 10.1.3).
type CompositePrivate struct {
	DeviceKeyUdf string             `json:",omitzero"`
	PrivateSalt  *PrivateParameters `json:",omitzero"`
	ServiceShare *PrivateParameters `json:",omitzero"`
}

// PrivateKeyECDH is a private key on one of the seven curves. On the 25519 and 448
// curves, Private is the seed before clamping or hashing, or, if z follows the name of
// the curve, the scalar, little endian. On the NIST curves it is the scalar, big endian,
// with z or without.
type PrivateKeyECDH struct {
	KeyID      string `json:"kid,omitzero"` // a label; not looked at
	Curve      string `json:"crv"`
	Public     Binary `json:",omitzero"` // must agree
	Private    Binary
	Exportable bool `json:",omitzero"` // a wish of the reference code; not looked at
}

// PrivateKeyRSA is an RSA private key in the JOSE names (RFC 7518, 6.3.2), big endian. dp, dq
// and qi may be missing.
type PrivateKeyRSA struct {
	KeyID      string `json:"kid,omitzero"` // a label; not looked at
	N          Binary `json:"n"`
	E          Binary `json:"e"`
	D          Binary `json:"d"`
	P          Binary `json:"p"`
	Q          Binary `json:"q"`
	DP         Binary `json:"dp,omitzero"`
	DQ         Binary `json:"dq,omitzero"`
	QI         Binary `json:"qi,omitzero"`
	Exportable bool   `json:",omitzero"` // a wish of the reference code; not looked at
}

// PrivateKeyUDF is a seed. KeyType, if it is a name of a seed identifier, must agree with
// the one inside the seed. The algorithms say what a Mesh client derives by default; a key
// is derived here for the algorithm that is asked for.
type PrivateKeyUDF struct {
	KeyID                 string   `json:"kid,omitzero"` // a label; not looked at
	PrivateValue          string   // Z...
	KeyType               string   `json:",omitzero"`
	AlgorithmEncrypt      string   `json:",omitzero"`
	AlgorithmSign         string   `json:",omitzero"`
	AlgorithmAuthenticate string   `json:",omitzero"`
	RootSignAlgorithms    []string `json:",omitzero"`
	Exportable            bool     `json:",omitzero"`
}

// ParseKeyData reads {"KeyData":{...}}, a bare KeyData object, or an object whose one
// member is a public or private parameter such as {"PrivateKeyECDH":{...}}. Nothing but
// the form is checked.
func ParseKeyData(data []byte) (*KeyData, error) {
	var members map[string]strictjson.Value
	if err := strictjson.Unmarshal(data, &members); err != nil {
		return nil, fmt.Errorf("parse KeyData: %w", err)
	}
	var k KeyData
	if err := decodeKeyData(members, data, &k); err != nil {
		return nil, fmt.Errorf("parse KeyData: %w", err)
	}
	return &k, nil
}

func decodeKeyData(members map[string]strictjson.Value, data []byte, k *KeyData) error {
	if len(members) == 1 {
		for tag, body := range members {
			switch {
			case tag == TagKeyData:
				return decodeObject(body, k)
			case strings.HasPrefix(tag, "PublicKey"):
				return strictjson.Unmarshal(data, &k.PublicParameters)
			case strings.HasPrefix(tag, "PrivateKey"):
				return strictjson.Unmarshal(data, &k.PrivateParameters)
			}
		}
	}
	return decodeObject(data, k)
}

// decodeObject decodes what must be an object, since null would pass for an empty one.
func decodeObject(data []byte, v any) error {
	if !strings.HasPrefix(strings.TrimLeft(string(data[:min(len(data), 64)]), " \t\r\n"), "{") {
		return errors.New("object expected")
	}
	return strictjson.Unmarshal(data, v)
}

// PublicKey returns the key of PublicParameters, which must be there, after Check.
func (k *KeyData) PublicKey() (token.PublicKey, error) {
	if k.PublicParameters == nil {
		return token.PublicKey{}, fmt.Errorf("KeyData has no PublicParameters: %w", token.ErrBadKey)
	}
	pub, err := k.PublicParameters.PublicKey()
	if err != nil {
		return token.PublicKey{}, err
	}
	return pub, k.checkUdf(pub)
}

// Check refuses a key whose PublicParameters or Udf are present and are not those of pub.
// A Udf may be of either generation.
func (k *KeyData) Check(pub token.PublicKey) error {
	if k.PublicParameters != nil {
		if err := k.PublicParameters.same(pub); err != nil {
			return err
		}
	}
	return k.checkUdf(pub)
}

func (k *KeyData) checkUdf(pub token.PublicKey) error {
	if k.Udf == "" {
		return nil
	}
	id, err := NormalizeKeyID(k.Udf)
	if err != nil {
		return fmt.Errorf("KeyData Udf: %w: %w", token.ErrBadKey, err)
	}
	aliases, err := Aliases(pub)
	if err != nil {
		return err
	}
	for _, full := range aliases {
		if strings.HasPrefix(full, id) {
			return nil
		}
	}
	return fmt.Errorf("KeyData Udf is another key's: %w", token.ErrBadKey)
}

// CheckValidity refuses a key that is not valid at a time.
func (k *KeyData) CheckValidity(now time.Time) error {
	switch {
	case !k.NotBefore.IsZero() && now.Before(k.NotBefore):
		return fmt.Errorf("key is not valid before %s: %w", k.NotBefore.Format(time.RFC3339), token.ErrBadKey)
	case !k.NotOnOrAfter.IsZero() && !now.Before(k.NotOnOrAfter):
		return fmt.Errorf("key is not valid since %s: %w", k.NotOnOrAfter.Format(time.RFC3339), token.ErrBadKey)
	}
	return nil
}

// ParseKeyDataPublic reads what ParseKeyData does, and returns the public key. Private
// parts, a Udf of another key, a bad point and a key that is not valid now are refused.
func ParseKeyDataPublic(data []byte) (token.PublicKey, error) {
	k, err := ParseKeyData(data)
	if err != nil {
		return token.PublicKey{}, err
	}
	if k.PrivateParameters != nil {
		k.PrivateParameters.Wipe()
		return token.PublicKey{}, fmt.Errorf("KeyData has a private key where a public one is expected: %w", token.ErrBadKey)
	}
	if err := k.CheckValidity(time.Now()); err != nil {
		return token.PublicKey{}, err
	}
	return k.PublicKey()
}

// MarshalKeyDataPublic writes {"KeyData":{...}} with the Udf of generation g. X25519 keys
// are written in 32 octets, which is what their fingerprint is over. A pub that is not
// well formed is written without Udf.
func MarshalKeyDataPublic(pub token.PublicKey, g Generation) []byte {
	parameters := ordinaryParameters(pub)
	k := KeyData{PublicParameters: &parameters}
	k.Udf, _ = Fingerprint(pub, g)
	out, _ := strictjson.Marshal(map[string]KeyData{TagKeyData: k})
	return out
}

// NewKeyData returns a public key as KeyData with its Udf of generation g. X25519 keys are
// written without sign where the sign is the one that readers assume (v even), and with
// it otherwise, since sums need it.
func NewKeyData(pub token.PublicKey, g Generation) (*KeyData, error) {
	udf, err := Fingerprint(pub, g)
	if err != nil {
		return nil, err
	}
	parameters := ordinaryParameters(pub)
	if pub.Algorithm == token.X25519 && pub.Octets[32] != 0 {
		parameters = Parameters(pub)
	}
	return &KeyData{Udf: udf, PublicParameters: &parameters}, nil
}

// NewPrivateKeyData returns a private key as KeyData: a seed under the curve's name, a scalar
// under that with z, an RSA key with all its members. The octets are copied: the caller wipes key and result.
func NewPrivateKeyData(key *token.PrivateKey, g Generation) (*KeyData, error) {
	pub, err := PublicOf(key)
	if err != nil {
		return nil, err
	}
	k, err := NewKeyData(pub, g)
	if err != nil {
		return nil, err
	}
	switch {
	case key.RSA != nil:
		k.PrivateParameters = &PrivateParameters{PrivateKeyRSA: newPrivateKeyRSA(key.RSA)}
	case key.Scalar != nil:
		k.PrivateParameters = &PrivateParameters{PrivateKeyECDH: &PrivateKeyECDH{Curve: string(key.Algorithm) + "z", Private: slices.Clone(key.Scalar)}}
	default:
		k.PrivateParameters = &PrivateParameters{PrivateKeyECDH: &PrivateKeyECDH{Curve: string(key.Algorithm), Private: slices.Clone(key.Seed)}}
	}
	return k, nil
}

// newPrivateKeyRSA writes a key of two primes, whose Precomputed is filled in.
func newPrivateKeyRSA(key *rsa.PrivateKey) *PrivateKeyRSA {
	c := key.Precomputed
	return &PrivateKeyRSA{
		N: key.N.Bytes(), E: big.NewInt(int64(key.E)).Bytes(), D: key.D.Bytes(),
		P: key.Primes[0].Bytes(), Q: key.Primes[1].Bytes(), DP: c.Dp.Bytes(), DQ: c.Dq.Bytes(), QI: c.Qinv.Bytes(),
	}
}

// MarshalKeyDataScalar writes {"KeyData":{...}} with a private scalar in the curve's
// encoding, under the curve's name with z, and its public key in the signed form. The
// caller wipes the result.
func MarshalKeyDataScalar(a token.Algorithm, scalar []byte) ([]byte, error) {
	pub, err := PublicOf(&token.PrivateKey{Algorithm: a, Scalar: scalar})
	if err != nil {
		return nil, err
	}
	udf, err := Fingerprint(pub, G1)
	if err != nil {
		return nil, err
	}
	public := Parameters(pub)
	private := PrivateParameters{PrivateKeyECDH: &PrivateKeyECDH{Curve: string(a) + "z", Private: scalar}}
	return strictjson.Marshal(map[string]KeyData{
		TagKeyData: {Udf: udf, PublicParameters: &public, PrivateParameters: &private},
	})
}

// PrivateKey returns the key of PrivateKeyECDH or PrivateKeyRSA, whichever is set. For
// PrivateKeyUDF use Seed. The caller wipes the result. The error wraps token.ErrBadKey.
func (p *PrivateParameters) PrivateKey() (*token.PrivateKey, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	switch {
	case p.PrivateKeyECDH != nil:
		return p.PrivateKeyECDH.privateKey()
	case p.PrivateKeyRSA != nil:
		return p.PrivateKeyRSA.privateKey()
	}
	return nil, fmt.Errorf("no key but a seed is given: %w", token.ErrBadKey)
}

// Seed returns the seed of PrivateKeyUDF; for other keys use PrivateKey. The caller wipes
// it. The error wraps token.ErrBadKey.
func (p *PrivateParameters) Seed() (*Seed, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if p.PrivateKeyUDF == nil {
		return nil, fmt.Errorf("no seed is given: %w", token.ErrBadKey)
	}
	return p.PrivateKeyUDF.seed()
}

// check says whether exactly one supported member is set.
func (p *PrivateParameters) check() error {
	set := 0
	for _, present := range []bool{p.PrivateKeyECDH != nil, p.PrivateKeyRSA != nil, p.PrivateKeyUDF != nil,
		p.KeyShare != nil, p.CompositePrivate != nil} {
		if present {
			set++
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("exactly one private key is expected, there are %d: %w", set, token.ErrBadKey)
	case p.KeyShare != nil:
		return fmt.Errorf("a KeyShare is not a whole key: %w", token.ErrBadKey)
	case p.CompositePrivate != nil:
		return fmt.Errorf("a CompositePrivate is not a whole key: %w", token.ErrBadKey)
	}
	return nil
}

// Wipe overwrites the secret octets. It cannot reach a seed, which is a string.
func (p *PrivateParameters) Wipe() {
	if p == nil {
		return
	}
	if k := p.PrivateKeyECDH; k != nil {
		clear(k.Private)
	}
	if k := p.PrivateKeyRSA; k != nil {
		for _, b := range [][]byte{k.D, k.P, k.Q, k.DP, k.DQ, k.QI} {
			clear(b)
		}
	}
	if k := p.KeyShare; k != nil {
		k.Share.Wipe()
	}
	if k := p.CompositePrivate; k != nil {
		k.PrivateSalt.Wipe()
		k.ServiceShare.Wipe()
	}
}

func (k *PrivateKeyECDH) privateKey() (*token.PrivateKey, error) {
	name, raw := strings.CutSuffix(k.Curve, "z")
	a := token.Algorithm(name)
	curve, ok := CurveOf(a)
	if !ok {
		return nil, fmt.Errorf("crv %.16q is not a curve: %w", k.Curve, token.ErrBadKey)
	}
	key := &token.PrivateKey{Algorithm: a}
	if raw || curve.IsNIST() {
		s, err := keyshare.ParseScalar(curve, k.Private)
		if err != nil {
			return nil, fmt.Errorf("read %s scalar: %w: %w", a, token.ErrBadKey, err)
		}
		key.Scalar = s.Bytes()
		s.Wipe()
	} else {
		key.Seed = slices.Clone(k.Private)
	}
	pub, err := PublicOf(key)
	if err == nil && k.Public != nil {
		err = PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: name, Public: k.Public}}.same(pub)
	}
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return key, nil
}

func (k *PrivateKeyRSA) privateKey() (*token.PrivateKey, error) {
	pub, err := (&PublicKeyRSA{N: k.N, E: k.E}).standard()
	if err != nil {
		return nil, err
	}
	size := (pub.N.BitLen() + 7) / 8
	for _, part := range []struct {
		name  string
		value Binary
	}{{"d", k.D}, {"p", k.P}, {"q", k.Q}} {
		if len(part.value) == 0 || len(part.value) > size+1 {
			return nil, fmt.Errorf("RSA member %s of %d octets: %w", part.name, len(part.value), token.ErrBadKey)
		}
	}
	number := func(b Binary) *big.Int { return new(big.Int).SetBytes(b) }
	key := &rsa.PrivateKey{PublicKey: *pub, D: number(k.D), Primes: []*big.Int{number(k.P), number(k.Q)}}
	out, err := RSAKey(key)
	if err != nil {
		return nil, err
	}
	c := key.Precomputed
	for _, part := range []struct {
		name        string
		given, want *big.Int
	}{{"dp", number(k.DP), c.Dp}, {"dq", number(k.DQ), c.Dq}, {"qi", number(k.QI), c.Qinv}} {
		if part.given.Sign() != 0 && part.given.Cmp(part.want) != 0 {
			return nil, fmt.Errorf("RSA member %s does not fit the primes: %w", part.name, token.ErrBadKey)
		}
	}
	return out, nil
}

// RSAKey validates and precomputes an RSA key, as it comes out of a file, of two primes and
// 2048, 3072 or 4096 bits or up to 7 fewer. The error wraps token.ErrBadKey and holds
// nothing of the key.
func RSAKey(key *rsa.PrivateKey) (*token.PrivateKey, error) { return rsaKey(key, shortFileRSA) }

func rsaKey(key *rsa.PrivateKey, short int) (*token.PrivateKey, error) {
	a, err := rsaAlgorithm(key.N.BitLen(), short)
	if err != nil {
		return nil, err
	}
	bad := func(what string) (*token.PrivateKey, error) {
		return nil, fmt.Errorf("RSA private key: %s: %w", what, token.ErrBadKey)
	}
	if len(key.Primes) != 2 {
		return bad(fmt.Sprintf("%d primes, two are expected", len(key.Primes)))
	}
	p, q := key.Primes[0], key.Primes[1]
	if p.Cmp(q) == 0 {
		return bad("the primes are equal")
	}
	for _, x := range key.Primes {
		if x.BitLen() > key.N.BitLen() || !x.ProbablyPrime(20) {
			return bad("a factor is not prime")
		}
	}
	if err := key.Validate(); err != nil {
		return bad("the numbers do not fit together")
	}
	key.Precompute()
	return &token.PrivateKey{Algorithm: a, RSA: key}, nil
}
