package montgomery

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"testing"

	"github.com/cloudflare/circl/math/fp25519"
	"github.com/cloudflare/circl/math/fp448"
)

// published is one vector of testdata/threshold-decrypt.json: two contributions to a key
// agreement and their sum, or a share and its public key, or one agreement on the wire.
type published struct {
	Alg  string
	KeyA struct {
		Scalar string
		Signed string `json:"public_signed"`
	} `json:"key_A"`
	Key1 struct{ Scalar string } `json:"key_1"`
	KeyE struct {
		Scalar   string
		U, V     string
		Signed   string `json:"public_signed"`
		Unsigned string `json:"public_unsigned"`
	} `json:"key_E"`
	Scalar2 string `json:"scalar_2"`
	Ladder  struct {
		X2 string `json:"x_2"`
		Z2 string `json:"z_2"`
		X3 string `json:"x_3"`
		Z3 string `json:"z_3"`
	} `json:"ladder_1"`
	First struct {
		U, V, Encoded string
	} `json:"contribution_1"`
	Second struct {
		U, V, Encoded string
	} `json:"contribution_2"`
	Sum       struct{ U, V, Encoded string }
	Agreement string `json:"key_agreement_result"`

	ShareScalar   string `json:"share_scalar"`
	SharePublic   string `json:"share_public"`
	GroupPublic   string `json:"group_public"`
	ServicePublic string `json:"service_share_public_must_equal"`

	RequestPublic string `json:"request_public"`
	Result        string
}

func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("testdata/threshold-decrypt.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ Vectors []published }
	if err := json.Unmarshal(file, &all); err != nil {
		t.Fatal(err)
	}
	var agreements25519, agreements448, shares, wires int
	for _, v := range all.Vectors {
		switch {
		case v.Alg == "X25519" && v.Agreement != "":
			agreements25519++
			suite25519().testAgreement(t, v)
		case v.Alg == "X448" && v.Agreement != "":
			agreements448++
			suite448().testAgreement(t, v)
		case v.Alg == "X448" && v.ShareScalar != "":
			shares++
			suite448().testShare(t, v)
		case v.Alg == "X448" && v.RequestPublic != "":
			wires++
			suite448().testRoundTrip(t, v.RequestPublic)
			suite448().testRoundTrip(t, v.Result)
		}
	}
	if agreements25519 == 0 || agreements448 == 0 || shares == 0 || wires == 0 {
		t.Errorf("vectors missing: %d %d %d %d", agreements25519, agreements448, shares, wires)
	}
}

func (s suite[E, C]) testAgreement(t *testing.T, v published) {
	keyA := s.multiplyDecimal(t, s.base, v.KeyA.Scalar)
	s.wantPoint(t, "key A", keyA, v.KeyA.Signed)
	keyE := s.multiplyDecimal(t, s.base, v.KeyE.Scalar)
	s.wantPoint(t, "key E", keyE, v.KeyE.Signed)
	s.wantCoordinates(t, "key E", keyE, v.KeyE.U, v.KeyE.V)
	if got := hex.EncodeToString(keyE.U()); got != v.KeyE.Unsigned {
		t.Errorf("key E without sign is %s, want %s", got, v.KeyE.Unsigned)
	}
	s.testRoundTrip(t, v.KeyE.Signed)
	s.testLadder(t, v)

	first := s.multiplyDecimal(t, keyE, v.Key1.Scalar)
	s.wantPoint(t, "contribution 1", first, v.First.Encoded)
	s.wantCoordinates(t, "contribution 1", first, v.First.U, v.First.V)
	second := s.multiplyDecimal(t, keyE, v.Scalar2)
	s.wantPoint(t, "contribution 2", second, v.Second.Encoded)
	s.wantCoordinates(t, "contribution 2", second, v.Second.U, v.Second.V)
	sum, err := first.Add(second)
	if err != nil {
		t.Fatal(err)
	}
	s.wantPoint(t, "sum", sum, v.Sum.Encoded)
	s.wantCoordinates(t, "sum", sum, v.Sum.U, v.Sum.V)
	if got := hex.EncodeToString(sum.U()); got != v.Agreement {
		t.Errorf("agreement is %s, want %s", got, v.Agreement)
	}
}

// testLadder compares projective u-coordinates, whose common factor depends on the length of the ladder.
func (s suite[E, C]) testLadder(t *testing.T, v published) {
	var c C
	var r ladder[E]
	p := s.mustDecode(t, unhex(t, v.KeyE.Signed))
	c.ladder(&r, s.littleEndian(parseInt(v.Key1.Scalar)), &p.u)
	same := func(name string, x, z *E, wantX, wantZ string) {
		left := new(big.Int).Mul(s.fromLittleEndian(c.octets(x)), parseInt(wantZ))
		right := new(big.Int).Mul(s.fromLittleEndian(c.octets(z)), parseInt(wantX))
		if s.mod(left).Cmp(s.mod(right)) != 0 {
			t.Errorf("ladder (%s) is (%x : %x), want (%s : %s)", name, c.octets(x), c.octets(z), wantX, wantZ)
		}
	}
	same("x2 : z2", &r.x2, &r.z2, v.Ladder.X2, v.Ladder.Z2)
	same("x3 : z3", &r.x3, &r.z3, v.Ladder.X3, v.Ladder.Z3)
}

func (s suite[E, C]) testShare(t *testing.T, v published) {
	share := s.multiplyDecimal(t, s.base, v.ShareScalar)
	s.wantPoint(t, "share", share, v.SharePublic)
	sum, err := share.Add(s.mustDecode(t, unhex(t, v.ServicePublic)))
	if err != nil {
		t.Fatal(err)
	}
	s.wantPoint(t, "group key", sum, v.GroupPublic)
}

func (s suite[E, C]) testRoundTrip(t *testing.T, encoded string) {
	s.wantPoint(t, "decoded point", s.mustDecode(t, unhex(t, encoded)), encoded)
}

func (s suite[E, C]) multiplyDecimal(t *testing.T, p *Point[E, C], k string) *Point[E, C] {
	t.Helper()
	q, err := p.ScalarMult(s.littleEndian(parseInt(k)))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func (s suite[E, C]) wantPoint(t *testing.T, name string, p *Point[E, C], want string) {
	t.Helper()
	if got := hex.EncodeToString(p.Bytes()); got != want {
		t.Errorf("%s is %s, want %s", name, got, want)
	}
}

func (s suite[E, C]) wantCoordinates(t *testing.T, name string, p *Point[E, C], u, v string) {
	t.Helper()
	s.checkCoordinates(t, name, p, &affine{parseInt(u), parseInt(v)})
}

// rfc7748 are the vectors of RFC 7748, X25519 and X448.
var rfc7748 = []struct{ name, scalar, u, want string }{
	{
		"section 5.2, first",
		"a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
		"e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
		"c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
	},
	{
		"section 5.2, second",
		"4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
		"e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
		"95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
	},
	{
		"section 6.1, public key of Alice",
		"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
		"0900000000000000000000000000000000000000000000000000000000000000",
		"8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
	},
	{
		"section 6.1, public key of Bob",
		"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
		"0900000000000000000000000000000000000000000000000000000000000000",
		"de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
	},
	{
		"section 6.1, Alice",
		"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
		"de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
		"4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
	},
	{
		"section 6.1, Bob",
		"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
		"8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
		"4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
	},
	{
		"section 5.2, third",
		"3d262fddf9ec8e88495266fea19a34d28882acef045104d0d1aae121700a779c984c24f8cdd78fbff44943eba368f54b29259a4f1c600ad3",
		"06fce640fa3487bfda5f6cf2d5263f8aad88334cbd07437f020f08f9814dc031ddbdc38c19c6da2583fa5429db94ada18aa7a7fb4ef8a086",
		"ce3e4ff95a60dc6697da1db1d85e6afbdf79b50a2412d7546d5f239fe14fbaadeb445fc66a01b0779d98223961111e21766282f73dd96b6f",
	},
	{
		"section 5.2, fourth",
		"203d494428b8399352665ddca42f9de8fef600908e0d461cb021f8c538345dd77c3e4806e25f46d3315c44e0a5b4371282dd2c8d5be3095f",
		"0fbcc2f993cd56d3305b0b7d9e55d4c1a8fb5dbb52f8e9a1e9b6201b165d015894e56c4d3570bee52fe205e28a78b91cdfbde71ce8d157db",
		"884a02576239ff7a2f2f63b2db6a9ff37047ac13568e1e30fe63c4a7ad1b3ee3a5700df34321d62077e63633c575c1c954514e99da7c179d",
	},
	{
		"section 6.2, public key of Alice",
		"9a8f4925d1519f5775cf46b04b5800d4ee9ee8bae8bc5565d498c28dd9c9baf574a9419744897391006382a6f127ab1d9ac2d8c0a598726b",
		"0500000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
		"9b08f7cc31b7e3e67d22d5aea121074a273bd2b83de09c63faa73d2c22c5d9bbc836647241d953d40c5b12da88120d53177f80e532c41fa0",
	},
	{
		"section 6.2, public key of Bob",
		"1c306a7ac2a0e2e0990b294470cba339e6453772b075811d8fad0d1d6927c120bb5ee8972b0d3e21374c9c921b09d1b0366f10b65173992d",
		"0500000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
		"3eb7a829b0cd20f5bcfc0b599b6feccf6da4627107bdb0d4f345b43027d8b972fc3e34fb4232a13ca706dcb57aec3dae07bdc1c67bf33609",
	},
	{
		"section 6.2, Alice",
		"9a8f4925d1519f5775cf46b04b5800d4ee9ee8bae8bc5565d498c28dd9c9baf574a9419744897391006382a6f127ab1d9ac2d8c0a598726b",
		"3eb7a829b0cd20f5bcfc0b599b6feccf6da4627107bdb0d4f345b43027d8b972fc3e34fb4232a13ca706dcb57aec3dae07bdc1c67bf33609",
		"07fff4181ac6cc95ec1c16a94a0f74d12da232ce40a77552281d282bb60c0b56fd2464c335543936521c24403085d59a449a5037514a879d",
	},
	{
		"section 6.2, Bob",
		"1c306a7ac2a0e2e0990b294470cba339e6453772b075811d8fad0d1d6927c120bb5ee8972b0d3e21374c9c921b09d1b0366f10b65173992d",
		"9b08f7cc31b7e3e67d22d5aea121074a273bd2b83de09c63faa73d2c22c5d9bbc836647241d953d40c5b12da88120d53177f80e532c41fa0",
		"07fff4181ac6cc95ec1c16a94a0f74d12da232ce40a77552281d282bb60c0b56fd2464c335543936521c24403085d59a449a5037514a879d",
	},
}

func TestRFC7748(t *testing.T) {
	t.Parallel()
	for _, v := range rfc7748 {
		scalar, u := unhex(t, v.scalar), unhex(t, v.u)
		x := ladderU25519
		if len(u) == 56 {
			x = ladderU448
		}
		if got := hex.EncodeToString(x(scalar, u)); got != v.want {
			t.Errorf("%s: got %s, want %s", v.name, got, v.want)
		}
	}
}

// TestRFC7748Iterated is the second kind of test of RFC 7748, section 5.2.
func TestRFC7748Iterated(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name        string
		u           []byte
		x           func(k, u []byte) []byte
		once, often string
	}{
		{
			"X25519", Base25519().U(), ladderU25519,
			"422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
			"684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
		},
		{
			"X448", Base448().U(), ladderU448,
			"3f482c8a9f19b01e6c46ee9711d9dc14fd4bf67af30765c2ae2b846a4d23a8cd0db897086239492caf350b51f833868b9bc2b3bca9cf4113",
			"aa3b4749d55b9daf1e5b00288826c467274ce3ebbdd5c17b975e09d4af6c67cf10d087202db88286e2b79fceea3ec353ef54faa26e219f38",
		},
	} {
		k, u := v.u, v.u
		for i := range 1000 {
			k, u = v.x(k, u), k
			if i == 0 && hex.EncodeToString(k) != v.once {
				t.Errorf("%s once: got %x, want %s", v.name, k, v.once)
			}
		}
		if hex.EncodeToString(k) != v.often {
			t.Errorf("%s 1000 times: got %x, want %s", v.name, k, v.often)
		}
	}
}

// ladderU25519 is X25519 from the ladder alone: the vectors use points that the decoders refuse.
func ladderU25519(k, u []byte) []byte {
	u = bytes.Clone(u)
	u[31] &= 0x7f
	return ladderU[fp25519.Elt, curve25519](k, u)
}

func ladderU448(k, u []byte) []byte { return ladderU[fp448.Elt, curve448](k, u) }

func ladderU[E any, C curve[E]](k, u []byte) []byte {
	var c C
	var x E
	var r ladder[E]
	copy(c.octets(&x), u)
	k = bytes.Clone(k)
	clamp(k)
	c.ladder(&r, k, &x)
	c.inv(&r.z2, &r.z2)
	c.mul(&r.x2, &r.x2, &r.z2)
	return bytes.Clone(c.octets(&r.x2))
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
