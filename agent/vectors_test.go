package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// importScalar imports a raw scalar through the protocol and returns its KeyId.
func importScalar(t *testing.T, a *Agent, use, curve string, scalar []byte) string {
	t.Helper()
	file := `{"PrivateKeyECDH":{"crv":"` + curve + `z","Private":"` + b64(scalar) + `"}}`
	reply := operateJSON(t, a, `{"KeyImportRequest":{"Token":"t","Use":"`+use+`","Key":"`+b64([]byte(file))+`"}}`)
	var out mesh.KeyResponse
	if err := strictjson.Unmarshal(body(t, reply, "KeyImportResponse"), &out); err != nil || out.Key == nil {
		t.Fatalf("%s: %v", reply, err)
	}
	return out.Key.Udf
}

// TestPublishedEnvelopes unwraps published envelopes of both generations by Decrypt.
func TestPublishedEnvelopes(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../mesh/testdata/dare-unwrap-*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d fixtures found, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			var fixture struct {
				Input struct {
					Envelope         json.RawMessage
					RecipientPrivate struct {
						Crv         string
						ScalarLEHex string `json:"scalar_le_hex"`
					} `json:"recipient_private"`
				}
				Expect struct {
					SharedPoint string `json:"shared_point_signed57_hex"`
					Seed        string `json:"base_seed_hex"`
					Key         string `json:"content_key_hex"`
					IV          string `json:"iv_hex"`
					Plaintext   string
				}
			}
			load(t, path, &fixture)
			envelope, err := mesh.ParseEnvelope(fixture.Input.Envelope)
			if err != nil {
				t.Fatal(err)
			}
			private, want := fixture.Input.RecipientPrivate, fixture.Expect
			to := envelope.Header.Recipients[0]
			recipient, err := strictjson.Marshal(mesh.DecryptRecipient{EphemeralKey: to.EphemeralKey, WrappedKey: to.WrappedKey})
			if err != nil {
				t.Fatal(err)
			}
			a := newAgent(t, Limits{}, newFake("t"))
			key := importScalar(t, a, "agree", private.Crv, mustHex(t, private.ScalarLEHex))
			decrypt := func(more string) (out mesh.ResultDecrypt) {
				t.Helper()
				r := operateResult(t, a, `{"CryptographicOperationDecrypt":{"KeyId":"`+key+`","Recipient":`+string(recipient)+more+`}}`)
				if err := r.Decode(&out); err != nil {
					t.Fatalf("%s: %v", r.Body, err)
				}
				return out
			}
			if got := decrypt(""); !bytes.Equal(got.Seed, mustHex(t, want.Seed)) {
				t.Errorf("seed %x, want %s", got.Seed, want.Seed)
			}
			got := decrypt(`,"Release":"key","Salt":"` + b64(envelope.Header.Salt) + `"`)
			if !bytes.Equal(got.Key, mustHex(t, want.Key)) || !bytes.Equal(got.IV, mustHex(t, want.IV)) {
				t.Errorf("key %x, iv %x; want %s, %s", got.Key, got.IV, want.Key, want.IV)
			}
			if got := openWhole(t, a, key, envelope); string(got.Plaintext) != want.Plaintext {
				t.Errorf("plaintext %q, want %q", got.Plaintext, want.Plaintext)
			}
			checkAgreement(t, a, key, to.EphemeralKey.PublicKeyECDH, mustHex(t, want.SharedPoint))
		})
	}
}

// checkAgreement does a KeyAgreement and compares the point.
func checkAgreement(t *testing.T, a *Agent, keyID string, peer *mesh.PublicKeyECDH, want []byte) {
	t.Helper()
	r := operateResult(t, a, `{"CryptographicOperationKeyAgreement":{"KeyId":"`+keyID+`","PublicKey":`+ecdh(peer.Curve, peer.Public)+`}}`)
	var out mesh.ResultKeyAgreement
	if err := r.Decode(&out); err != nil {
		t.Fatalf("%s: %v", r.Body, err)
	}
	if got := out.KeyAgreement.KeyAgreementECDH; got.Curve != peer.Curve || !bytes.Equal(got.Result, want) {
		t.Errorf("%s %x, want %x", got.Curve, got.Result, want)
	}
}

// TestThresholdVectors answers the second share's contribution of the published examples.
func TestThresholdVectors(t *testing.T) {
	t.Parallel()
	var file struct {
		Vectors []struct {
			Alg          string
			KeyE         map[string]string        `json:"key_E"`
			Scalar2      string                   `json:"scalar_2_le"`
			Contribution struct{ Encoded string } `json:"contribution_2"`
		}
	}
	load(t, "../keyshare/testdata/threshold-decrypt.json", &file)
	tried := 0
	for i, v := range file.Vectors {
		if v.Scalar2 == "" || v.Contribution.Encoded == "" || v.KeyE["public_signed"] == "" {
			continue
		}
		tried++
		t.Run(fmt.Sprintf("%d %s", i, strings.TrimSpace(v.Alg)), func(t *testing.T) {
			a := newAgent(t, Limits{}, newFake("t"))
			key := importScalar(t, a, "agree", v.Alg, mustHex(t, v.Scalar2))
			peer := &mesh.PublicKeyECDH{Curve: v.Alg, Public: mustHex(t, v.KeyE["public_signed"])}
			checkAgreement(t, a, key, peer, mustHex(t, v.Contribution.Encoded))
		})
	}
	if tried == 0 {
		t.Fatal("no vector found")
	}
}

func load(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}
