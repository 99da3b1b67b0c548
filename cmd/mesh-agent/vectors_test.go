package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// octets are written in hex in the vectors.
type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

// vector has the members of all kinds of vectors that go through the program.
type vector struct {
	Alg         string
	Udf         string
	KeyName     string
	Fingerprint string
	Key1        struct{ Scalar string } `json:"key_1"`
	KeyE        struct {
		Public octets `json:"public_signed"`
	} `json:"key_E"`
	Scalar2         string                   `json:"scalar_2"`
	First           struct{ Encoded octets } `json:"contribution_1"`
	Second          struct{ Encoded octets } `json:"contribution_2"`
	Sum             struct{ Encoded octets }
	RecipientSeed   string `json:"recipient_seed"`
	RecipientName   string `json:"recipient_keyname"`
	PrivateSeed     octets `json:"private_seed"`
	EphemeralKey    octets `json:"epk"`
	Wrapped         octets
	Info            string `json:"hkdf_info"`
	Unwrapped       octets
	SignedOctets    octets `json:"signed_octets"`
	SeedUdf         string `json:"seed_udf"`
	Signature       octets
	CompositeScalar string `json:"composite_scalar"`
	CompositePublic octets `json:"composite_public"`
}

// vectors reads a file of published vectors. No vectors are a failure.
func vectors(t *testing.T, name string) []vector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(file.Vectors) == 0 {
		t.Fatalf("%s has no vectors", name)
	}
	return file.Vectors
}

// program is a running agent of a test, with software keys.
type program struct {
	*testing.T
	socket string
}

func startProgram(t *testing.T) program {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := newManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	p := program{t, filepath.Join(dir, "agent.sock")}
	c := exec.Command("mesh-agent", "serve", "--socket", p.socket, "--state", filepath.Join(dir, "state"), "--insecure-software-keys", "--tpm", "off")
	c.Env = append(os.Environ(), m.env())
	var log bytes.Buffer
	c.Stderr = &log
	d, err := launch(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("the agent ended badly: %v\n%s", err, log.String())
		}
	})
	if err := m.ready(d.done); err != nil {
		t.Fatalf("the agent is not ready: %v", err)
	}
	return p
}

// run runs a command on standard input and returns its standard output.
func (p program) run(stdin string, args ...string) string {
	p.Helper()
	c := exec.Command("mesh-agent", append(args, "--socket", p.socket)...)
	c.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		p.Fatalf("mesh-agent %v: %v\n%s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// imported imports a key and returns its UDF.
func (p program) imported(key, use string, flags ...string) string {
	p.Helper()
	return p.run(key, append([]string{"key", "import", "--token", "soft", "--use", use}, flags...)...)
}

// operate sends one operation through "mesh-agent operate" and decodes its result.
func (p program) operate(operation string, body any, result string, out any) {
	p.Helper()
	op, err := strictjson.NewTagged(operation, body)
	if err != nil {
		p.Fatal(err)
	}
	request, err := strictjson.Marshal(map[string]any{mesh.TagOperateRequest: mesh.OperateRequest{Operations: []mesh.Tagged{op}}})
	if err != nil {
		p.Fatal(err)
	}
	var message mesh.Tagged
	var response mesh.OperateResponse
	if err := strictjson.Unmarshal([]byte(p.run(string(request), "operate")), &message); err != nil {
		p.Fatal(err)
	}
	if err := message.Decode(&response); err != nil {
		p.Fatal(err)
	}
	if err := client.DecodeResult(response.Results[0], result, out); err != nil {
		p.Fatalf("%s: %v", operation, err)
	}
}

// seedKey writes the private key of a curve from before clamping or hashing.
func seedKey(curve string, seed []byte) string {
	return fmt.Sprintf(`{"PrivateKeyECDH":{"crv":%q,"Private":%s}}`, curve, binary(seed))
}

// scalarKey writes a raw scalar of a 25519 or 448 curve, which vectors have in decimal.
func scalarKey(t *testing.T, curve, decimal string) string {
	t.Helper()
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok {
		t.Fatalf("scalar %q", decimal)
	}
	length := 32
	if strings.HasSuffix(curve, "448") {
		length = 56
	}
	scalar := n.FillBytes(make([]byte, length))
	slices.Reverse(scalar)
	return seedKey(curve+"z", scalar)
}

func binary(b []byte) []byte {
	text, _ := mesh.Binary(b).MarshalJSON() // which cannot fail
	return text
}

// needsAlgorithm reports whether a seed's id fixes no algorithm: 0, or 256 and above.
func needsAlgorithm(seed string) bool {
	return strings.HasPrefix(seed, "ZAAA-A") || !strings.HasPrefix(seed, "ZAAA-")
}

func seedFlags(seed, name, algorithm string) []string {
	flags := []string{"--key-name", name}
	if needsAlgorithm(seed) {
		flags = append(flags, "--alg", algorithm)
	}
	return flags
}

func useOf(algorithm string) string {
	if strings.HasPrefix(algorithm, "Ed") || strings.HasPrefix(algorithm, "RSA") {
		return "sign"
	}
	return "agree"
}

// TestVectorsThroughProgram feeds published values through "key import" and "operate",
// as a Mesh client's user would.
func TestVectorsThroughProgram(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(program, vector){
		"mesh/testdata/udf-derive.json":            deriveVector,
		"keyshare/testdata/threshold-keygen.json":  compositeVector,
		"keyshare/testdata/threshold-decrypt.json": partialVector,
		"mesh/testdata/key-agreement-dare.json":    unwrapVector,
		"mesh/testdata/eddsa-dare-sign.json":       signVector,
	} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			p := startProgram(t)
			for _, v := range vectors(t, name) {
				v.Alg, _, _ = strings.Cut(v.Alg, " ")
				test(p, v)
			}
		})
	}
}

func deriveVector(p program, v vector) {
	if got := p.imported(v.Udf, useOf(v.Alg), seedFlags(v.Udf, v.KeyName, v.Alg)...); got != v.Fingerprint {
		p.Errorf("%s key of %s, name %q: %s, want %s", v.Alg, v.Udf, v.KeyName, got, v.Fingerprint)
	}
}

func compositeVector(p program, v vector) {
	if v.CompositeScalar == "" {
		return // published without it
	}
	udf := p.imported(scalarKey(p.T, v.Alg, v.CompositeScalar), useOf(v.Alg))
	want := string(binary(v.CompositePublic))
	if got := p.run("", "key", "public", udf); !strings.Contains(got, strings.TrimSuffix(want, `"`)[:40]) {
		p.Errorf("%s composite: %s does not have %s", v.Alg, got, want)
	}
}

func partialVector(p program, v vector) {
	if v.Scalar2 == "" {
		return // a wire form without its private key
	}
	var files []string
	peer := mesh.PublicParameters{PublicKeyECDH: &point{Curve: v.Alg, Public: mesh.Binary(v.KeyE.Public)}}
	for scalar, want := range map[string]octets{v.Key1.Scalar: v.First.Encoded, v.Scalar2: v.Second.Encoded} {
		udf := p.imported(scalarKey(p.T, v.Alg, scalar), "agree")
		var result mesh.ResultKeyAgreement
		p.operate(mesh.TagOperationAgreement, mesh.OperationKeyAgreement{KeyId: udf, PublicKey: peer}, mesh.TagResultAgreement, &result)
		got := result.KeyAgreement
		if !bytes.Equal(got.KeyAgreementECDH.Result, want) {
			p.Errorf("%s: partial agreement %x, want %x", v.Alg, got.KeyAgreementECDH.Result, want)
		}
		file := filepath.Join(p.TempDir(), "point.json")
		text, err := strictjson.Marshal(got)
		if err != nil {
			p.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			p.Fatal(err)
		}
		files = append(files, file)
	}
	sum, err := parsePoint([]byte(p.run("", append([]string{"share", "combine"}, files...)...)))
	if err != nil || !bytes.Equal(sum.Public, v.Sum.Encoded) {
		p.Errorf("%s: the sum is %x, %v; want %x", v.Alg, sum.Public, err, v.Sum.Encoded)
	}
}

func unwrapVector(p program, v vector) {
	udf := ""
	if v.RecipientSeed != "" {
		udf = p.imported(v.RecipientSeed, "decrypt", seedFlags(v.RecipientSeed, v.RecipientName, v.Alg)...)
	} else {
		udf = p.imported(seedKey(v.Alg, v.PrivateSeed), "decrypt")
	}
	var result mesh.ResultDecrypt
	p.operate(mesh.TagOperationDecrypt, mesh.OperationDecrypt{KeyId: udf, Recipient: &mesh.DecryptRecipient{
		EphemeralKey: mesh.PublicParameters{PublicKeyECDH: &point{Curve: v.Alg, Public: mesh.Binary(v.EphemeralKey)}},
		WrappedKey:   mesh.Binary(v.Wrapped),
	}, Info: v.Info}, mesh.TagResultDecrypt, &result)
	if !bytes.Equal(result.Seed, v.Unwrapped) {
		p.Errorf("%s: unwrapped %x, want %x", v.Alg, result.Seed, v.Unwrapped)
	}
}

func signVector(p program, v vector) {
	udf := ""
	if v.SeedUdf != "" {
		udf = p.imported(v.SeedUdf, "sign", seedFlags(v.SeedUdf, v.KeyName, v.Alg)...)
	} else {
		udf = p.imported(seedKey(v.Alg, v.PrivateSeed), "sign")
	}
	var result mesh.ResultSign
	p.operate(mesh.TagOperationSign, mesh.OperationSign{KeyId: udf, Data: mesh.Binary(v.SignedOctets)}, mesh.TagResultSign, &result)
	if !bytes.Equal(result.Signature, v.Signature) {
		p.Errorf("%s: signature %x, want %x", v.Alg, result.Signature, v.Signature)
	}
}
