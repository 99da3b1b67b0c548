package keyshare

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// load decodes a file of testdata.
func load(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// Values of the files in their various notations.
type (
	hexOctets    []byte
	base64Octets []byte
	decimal      struct{ Int big.Int }
)

func (h *hexOctets) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func (h *base64Octets) UnmarshalText(b []byte) (err error) {
	*h, err = base64.RawURLEncoding.DecodeString(string(b))
	return err
}

func (d *decimal) UnmarshalText(b []byte) error { return d.Int.UnmarshalText(b) }

// octets encodes n as a scalar of c, however large.
func octets(c Curve, n *big.Int) []byte {
	b := n.FillBytes(make([]byte, c.ScalarLen()))
	if !c.IsNIST() {
		slices.Reverse(b)
	}
	return b
}

func mustCurve(t *testing.T, name string) Curve {
	t.Helper()
	c, err := ParseCurve(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustScalar(t testing.TB, c Curve, b []byte) *Scalar {
	t.Helper()
	s, err := ParseScalar(c, b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustPoint(t testing.TB, c Curve, b []byte) *Point {
	t.Helper()
	p, err := ParsePoint(c, b)
	if err != nil {
		t.Fatalf("point %x: %v", b, err)
	}
	return p
}

func mustRandom(t testing.TB, c Curve) *Scalar {
	t.Helper()
	s, err := RandomScalar(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantOctets(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if len(want) == 0 {
		t.Fatalf("%s: the vector has no value", what)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %x\nwant %x", what, got, want)
	}
}

// Published key generations: contributions and their sum, and activations, of which some give
// points only and some scalars only.
func TestKeyGenerationVectors(t *testing.T) {
	t.Parallel()
	var file struct {
		Vectors []struct {
			Alg, Source   string
			Contributions []struct {
				Scalar       decimal
				PublicSigned hexOctets `json:"public_signed"`
			}
			BasePublic       hexOctets `json:"base_public"`
			ActivationScalar decimal   `json:"activation_scalar"`
			ActivationPublic hexOctets `json:"activation_public"`
			CompositeLE      hexOctets `json:"composite_scalar_le"`
			CompositePublic  hexOctets `json:"composite_public"`
			CompositeSigned  hexOctets `json:"composite_public_signed"`
		}
	}
	load(t, "threshold-keygen.json", &file)
	if len(file.Vectors) != 16 {
		t.Fatalf("%d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Alg, func(t *testing.T) {
			t.Parallel()
			c := mustCurve(t, v.Alg)
			var scalar *Scalar
			var points []*Point
			for _, part := range v.Contributions {
				s := mustScalar(t, c, octets(c, &part.Scalar.Int))
				wantOctets(t, "public key of a contribution", s.Public().Bytes(), part.PublicSigned)
				points = append(points, mustPoint(t, c, part.PublicSigned))
				if scalar == nil {
					scalar = s
				} else if sum, err := scalar.Add(s); err != nil {
					t.Fatal(err)
				} else {
					scalar = sum
				}
			}
			if len(v.BasePublic) > 0 {
				s := mustScalar(t, c, octets(c, &v.ActivationScalar.Int))
				wantOctets(t, "public key of the activation", s.Public().Bytes(), v.ActivationPublic)
				points = append(points, mustPoint(t, c, v.BasePublic), s.Public())
			}
			want := v.CompositePublic
			if len(v.CompositeSigned) > 0 {
				want = v.CompositeSigned
			}
			if len(v.CompositeLE) > 0 {
				composite := mustScalar(t, c, v.CompositeLE)
				wantOctets(t, "composite public key", composite.Public().Bytes(), want)
				if scalar != nil {
					wantOctets(t, "composite scalar", scalar.Bytes(), v.CompositeLE)
				}
			}
			if len(points) > 0 {
				sum, err := Combine(points...)
				if err != nil {
					t.Fatal(err)
				}
				wantOctets(t, "sum of points", sum.Bytes(), want)
			}
		})
	}
}

// Published threshold agreements.
func TestAgreementVectors(t *testing.T) {
	t.Parallel()
	type key struct {
		Scalar   decimal
		Signed   hexOctets `json:"public_signed"`
		Unsigned hexOctets `json:"public_unsigned"`
	}
	type encoded struct{ Encoded hexOctets }
	var file struct {
		Vectors []struct {
			Alg     string
			KeyA    key       `json:"key_A"`
			Key1    key       `json:"key_1"`
			KeyE    key       `json:"key_E"`
			Scalar2 hexOctets `json:"scalar_2_le"`
			C1      encoded   `json:"contribution_1"`
			C2      encoded   `json:"contribution_2"`
			Sum     encoded
			Result  hexOctets `json:"key_agreement_result"`
		}
	}
	load(t, "threshold-decrypt.json", &file)
	found := 0
	for _, v := range file.Vectors {
		if len(v.Scalar2) == 0 {
			continue
		}
		found++
		t.Run(v.Alg, func(t *testing.T) {
			t.Parallel()
			c := mustCurve(t, v.Alg)
			a := mustScalar(t, c, octets(c, &v.KeyA.Scalar.Int))
			s1 := mustScalar(t, c, octets(c, &v.Key1.Scalar.Int))
			s2 := mustScalar(t, c, v.Scalar2)
			e := mustPoint(t, c, v.KeyE.Signed)
			wantOctets(t, "key A", a.Public().Bytes(), v.KeyA.Signed)
			wantOctets(t, "key E", mustScalar(t, c, octets(c, &v.KeyE.Scalar.Int)).Public().Bytes(), v.KeyE.Signed)
			c1, err1 := PartialAgreement(s1, nil, e)
			c2, err2 := PartialAgreement(s2, nil, e)
			whole, err3 := Agree(a, e)
			if err1 != nil || err2 != nil || err3 != nil {
				t.Fatal(err1, err2, err3)
			}
			wantOctets(t, "contribution 1", c1.Bytes(), v.C1.Encoded)
			wantOctets(t, "contribution 2", c2.Bytes(), v.C2.Encoded)
			sum, err := Combine(c1, c2)
			if err != nil {
				t.Fatal(err)
			}
			wantOctets(t, "sum", sum.Bytes(), v.Sum.Encoded)
			wantOctets(t, "whole", whole.Bytes(), v.Sum.Encoded)
			wantOctets(t, "result", sum.SharedSecret(), v.Result)
			// Lifting changes the sign of the result at most.
			if lifted, err := Agree(a, mustPoint(t, c, v.KeyE.Unsigned)); err != nil {
				t.Error(err)
			} else {
				wantOctets(t, "result of the lifted key", lifted.SharedSecret(), v.Result)
			}
		})
	}
	if found == 0 {
		t.Fatal("no vectors")
	}
}

// Agreements of an activated device key, in two parts.
func TestActivatedAgreementVectors(t *testing.T) {
	t.Parallel()
	var file struct {
		Cases []struct {
			Ephemeral  base64Octets `json:"ephemeral_public57"`
			Base       hexOctets    `json:"base_partial57_hex"`
			Activation hexOctets    `json:"activation_partial57_hex"`
			Sum        hexOctets    `json:"sum57_hex"`
			IKM        hexOctets    `json:"ikm_u56_hex"`
			Combined   hexOctets    `json:"combined_scalar_le_hex"`
		}
	}
	load(t, "threshold-agreement-synthetic-dev.json", &file)
	if len(file.Cases) == 0 {
		t.Fatal("no cases")
	}
	for _, v := range file.Cases {
		e := mustPoint(t, X448, v.Ephemeral)
		whole, err := Agree(mustScalar(t, X448, v.Combined), e)
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "whole", whole.Bytes(), v.Sum)
		sum, err := mustPoint(t, X448, v.Base).Add(mustPoint(t, X448, v.Activation))
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "sum", sum.Bytes(), v.Sum)
		wantOctets(t, "shared secret", sum.SharedSecret(), v.IKM)
	}
}

// Public keys of connected devices: base key of the profile plus activation.
func TestActivatedPublicKeys(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"activation-combine-public-g1-286d44f56.json", "activation-combine-public-g2-release_1.0.2.json"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var file struct {
				Expect map[string]struct {
					BasePublic   base64Octets `json:"base_public"`
					Contribution struct {
						Crv    string
						OKM    hexOctets    `json:"okm_hex"`
						Scalar hexOctets    `json:"scalar_le_hex"`
						Public base64Octets `json:"public"`
					}
					Combined base64Octets `json:"combined_public"`
				}
			}
			load(t, name, &file)
			if len(file.Expect) == 0 {
				t.Fatal("no cases")
			}
			for _, v := range file.Expect {
				c := mustCurve(t, v.Contribution.Crv)
				s, _, err := ExpandSeed(c, v.Contribution.OKM)
				if err != nil {
					t.Fatal(err)
				}
				wantOctets(t, "scalar", s.Bytes(), mustScalar(t, c, v.Contribution.Scalar).Bytes())
				wantOctets(t, "contribution", s.Public().Bytes(), v.Contribution.Public)
				sum, err := mustPoint(t, c, v.BasePublic).Add(s.Public())
				if err != nil {
					t.Fatal(err)
				}
				wantOctets(t, "combined", sum.Bytes(), v.Combined)
			}
		})
	}
}

// Keys derived from seeds: what package mesh derives is expanded here.
func TestExpandSeedVectors(t *testing.T) {
	t.Parallel()
	var file struct {
		Vectors []struct {
			Alg    string
			OKM    hexOctets
			Scalar decimal
			Public hexOctets
		}
	}
	load(t, "udf-derive.json", &file)
	if len(file.Vectors) != 52 {
		t.Fatalf("%d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		c := mustCurve(t, v.Alg)
		s, prefix, err := ExpandSeed(c, v.OKM)
		if err != nil {
			t.Fatal(err)
		}
		if eddsa := c == Ed25519 || c == Ed448; eddsa && len(prefix) != c.PointLen() || !eddsa && prefix != nil {
			t.Errorf("%v: prefix of %d octets", c, len(prefix))
		}
		wantOctets(t, "scalar", s.Bytes(), mustScalar(t, c, octets(c, &v.Scalar.Int)).Bytes())
		wantOctets(t, "public key", s.Public().Bytes()[:len(v.Public)], v.Public)
	}
}

// Signatures of published DARE envelopes.
func TestSignatureVectors(t *testing.T) {
	t.Parallel()
	var file struct {
		Vectors []struct {
			Alg       string
			Seed      hexOctets `json:"private_seed"`
			Public    hexOctets
			Message   hexOctets `json:"signed_octets"`
			Signature hexOctets
			Pure      hexOctets `json:"pure_ed25519_signature_would_be"`
		}
	}
	load(t, "eddsa-dare-sign.json", &file)
	if len(file.Vectors) != 3 {
		t.Fatalf("%d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		c := mustCurve(t, v.Alg)
		key, err := NewSigningKey(c, v.Seed)
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "public key", key.Public().Bytes(), v.Public)
		check := func(mode Mode, want []byte) {
			t.Helper()
			signature, err := key.Sign(nil, mode, v.Message)
			if err != nil {
				t.Fatal(err)
			}
			wantOctets(t, "signature", signature, want)
			if !Verify(mustPoint(t, c, v.Public), mode, v.Message, want) {
				t.Error("the published signature does not verify")
			}
		}
		check(ModeMesh, v.Signature)
		if c == Ed448 {
			check(ModePure, v.Signature)
			continue
		}
		check(ModePure, v.Pure)
		if Verify(key.Public(), ModePure, v.Message, v.Signature) || Verify(key.Public(), ModeMesh, v.Message, v.Pure) {
			t.Error("a signature verifies in the other mode")
		}
	}
}

// Older Mesh software signs with composite keys so that the nonce is public.
func TestCompositeSignatureTrap(t *testing.T) {
	t.Parallel()
	var file struct {
		Input struct {
			Scalar  hexOctets    `json:"combined_scalar_le_hex"`
			Public  base64Octets `json:"combined_public"`
			Message hexOctets    `json:"message_hex"`
		}
		Expect struct {
			Insecure hexOctets `json:"insecure_signature_hex"`
		}
	}
	load(t, "composite-signature-trap-synthetic-dev.json", &file)
	key, err := NewCompositeSigningKey(mustScalar(t, Ed448, file.Input.Scalar))
	if err != nil {
		t.Fatal(err)
	}
	wantOctets(t, "public key", key.Public().Bytes(), file.Input.Public)
	if !Verify(key.Public(), ModeMesh, file.Input.Message, file.Expect.Insecure) {
		t.Error("the insecure signature, which is valid, does not verify")
	}
	seen := map[string]bool{string(file.Expect.Insecure[:57]): true}
	for range 3 {
		signature, err := key.Sign(nil, ModeMesh, file.Input.Message)
		if err != nil {
			t.Fatal(err)
		}
		if !Verify(key.Public(), ModeMesh, file.Input.Message, signature) {
			t.Error("signature does not verify")
		}
		if r := string(signature[:57]); seen[r] {
			t.Errorf("R %x is the insecure one, or occurs twice", r)
		} else {
			seen[r] = true
		}
	}
}
