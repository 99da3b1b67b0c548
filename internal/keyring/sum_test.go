package keyring

import (
	"bytes"
	"context"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/softkey"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestSignWithSum signs with base keys and contributions wherever both are, and looks that the
// base key alone has no use.
func TestSignWithSum(t *testing.T) {
	t.Parallel()
	for _, a := range []token.Algorithm{token.Ed25519, token.Ed448} {
		for _, sealed := range []bool{false, true} {
			t.Run(string(a), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				softDir := t.TempDir()
				tpm := sealingTPM()
				f := newSealingRing(t, tpm, openSoft(t, softDir))
				spec := GenerateSpec{Token: "soft", Algorithm: a, Use: token.UseSignAssertion}
				add := CompositeSpec{Token: "soft", Use: token.UseSign}
				var base *Entry
				var err error
				if sealed {
					spec.Token, spec.Policy = "tpm", machine
					add.Token, add.Seal, add.Policy = "tpm", true, machine
					base, _, err = f.GenerateSealed(ctx, nil, spec)
				} else {
					base, err = f.Generate(ctx, nil, spec)
				}
				if err != nil {
					t.Fatal(err)
				}
				scalar := randomScalar(t, a)
				add.Base, add.Contribution = base.Udf, &token.PrivateKey{Algorithm: a, Scalar: scalar.Bytes()}
				e, err := f.AddComposite(ctx, nil, add)
				if err != nil {
					t.Fatal(err)
				}
				want, err := keyshare.Combine(base.slot.point, scalar.Public())
				if err != nil {
					t.Fatal(err)
				}
				req := token.SignRequest{Scheme: token.SchemeMeshEdDSA, Message: []byte("message")}
				for range 2 {
					signature, err := e.Sign(ctx, nil, req)
					if err != nil {
						t.Fatal(err)
					}
					if !keyshare.Verify(want, keyshare.ModeMesh, req.Message, signature) {
						t.Error("the signature is not that of the sum")
					}
					tpm = tpm.Reopen()
					f.restart(t, tpm, openSoft(t, softDir))
					if p := f.Snapshot().Problems(); len(p) != 0 {
						t.Fatalf("problems: %q", p)
					}
					e = f.find(t, e.Udf)
				}
			})
		}
	}
}

func TestSignWithSumRefused(t *testing.T) {
	t.Parallel()
	f := newRing(t, fakeTPM(), openSoft(t, t.TempDir()))
	contribution := func(a token.Algorithm) *token.PrivateKey {
		return &token.PrivateKey{Algorithm: a, Scalar: randomScalar(t, a).Bytes()}
	}
	inToken := f.generate(t, "tpm", token.Ed448, token.UseSignAssertion)
	_, err := f.AddComposite(t.Context(), nil, CompositeSpec{Base: inToken.Udf, Token: "soft", Use: token.UseSign, Contribution: contribution(token.Ed448)})
	wantErr(t, "base in a token", err, token.ErrUnsupported)
	soft := f.generate(t, "soft", token.Ed448, token.UseSignAssertion)
	_, err = f.AddComposite(t.Context(), nil, CompositeSpec{Base: soft.Udf, Token: "tpm", Use: token.UseSign, Contribution: contribution(token.Ed448)})
	if err == nil {
		e, err := f.Snapshot().FindPublic(token.PublicKey{Algorithm: token.Ed448, Octets: sumOf(t, f, soft)})
		if err == nil {
			_, err = e.Sign(t.Context(), nil, token.SignRequest{Scheme: token.SchemeMeshEdDSA})
		}
		wantErr(t, "contribution in a token", err, token.ErrUnsupported)
	}
	ssh := f.generate(t, "soft", token.Ed25519, token.UseSSH)
	_, err = f.AddComposite(t.Context(), nil, CompositeSpec{Base: ssh.Udf, Token: "soft", Use: token.UseSSH, Contribution: contribution(token.Ed25519)})
	wantErr(t, "sum for SSH", err, ErrUse)
}

// miscounter is a software token whose sums sign wrong.
type miscounter struct{ *softkey.Token }

func (m miscounter) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	k, err := m.Token.Open(ctx, req)
	if s, ok := k.(signingSummer); ok {
		return badSummer{k, s}, nil
	}
	return k, err
}

type badSummer struct {
	token.Key
	summer signingSummer
}

func (k badSummer) SumWith(others ...token.Key) (token.Key, error) {
	for i, o := range others {
		if b, ok := o.(badSummer); ok {
			others[i] = b.Key
		}
	}
	sum, err := k.summer.SumWith(others...)
	if err != nil {
		return nil, err
	}
	return badSigner{sum.(token.Signer)}, nil
}

type badSigner struct{ token.Signer }

func (k badSigner) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	signature, err := k.Signer.Sign(ctx, req)
	if err == nil {
		signature[len(signature)-1] ^= 1
	}
	return signature, err
}

// TestSignWithSumFault has a sum that signs wrong.
func TestSignWithSumFault(t *testing.T) {
	t.Parallel()
	for _, a := range []token.Algorithm{token.Ed25519, token.Ed448} {
		f := newRing(t, miscounter{openSoft(t, t.TempDir()).(*softkey.Token)})
		base := f.generate(t, "soft", a, token.UseSignAssertion)
		e, err := f.AddComposite(t.Context(), nil, CompositeSpec{
			Base: base.Udf, Token: "soft", Use: token.UseSign,
			Contribution: &token.PrivateKey{Algorithm: a, Scalar: randomScalar(t, a).Bytes()},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []token.Scheme{token.SchemeEdDSA, token.SchemeMeshEdDSA} {
			signature, err := e.Sign(t.Context(), nil, token.SignRequest{Scheme: s, Message: []byte("message")})
			wantErr(t, "Sign with a wrong sum", err, token.ErrFault)
			if signature != nil {
				t.Errorf("a wrong %s signature was released", a)
			}
		}
	}
}

// sumOf finds the one composite on a base.
func sumOf(t *testing.T, f *fixture, base *Entry) []byte {
	t.Helper()
	for _, e := range f.Snapshot().Entries() {
		if parts := e.Parts(); len(parts) > 1 && bytes.Equal(parts[0].Public.Octets, base.Public.Octets) {
			return e.Public.Octets
		}
	}
	t.Fatal("no composite")
	return nil
}

// TestPartOfOwnUse has a base key that only the agent uses, in a sum of another use.
func TestPartOfOwnUse(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	softDir := t.TempDir()
	fake := fakeTPM()
	f := newRing(t, fake, openSoft(t, softDir))
	base := f.generate(t, "tpm", token.P256, token.UseSeal)
	e, err := f.AddComposite(ctx, nil, CompositeSpec{
		Base: base.Udf, Token: "soft", Use: token.UseDecrypt,
		Contribution: &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()},
	})
	if err != nil {
		t.Fatal(err)
	}
	useKey(t, e)
	f.restart(t, fake.Reopen(), openSoft(t, softDir))
	useKey(t, f.find(t, e.Udf))
	if ops := f.find(t, base.Udf).Operations(); ops != nil {
		t.Errorf("operations of the base are %q", ops)
	}

	// The record does not turn the base into something else.
	f.edit(t, e, func(r map[string]any) { part0(r)["Use"] = "agree" })
	f.restart(t, fake.Reopen(), openSoft(t, softDir))
	if _, err := f.Snapshot().Find(e.Udf); err == nil {
		t.Error("a part of use agree in a key of use decrypt was accepted")
	}
	f.edit(t, e, func(r map[string]any) { delete(part0(r), "Use") })
	f.restart(t, fake.Reopen(), openSoft(t, softDir))
	wantErr(t, "use of the part removed", anyUse(ctx, f.find(t, e.Udf)), token.ErrCorrupt)
}

func BenchmarkSignWithSum(b *testing.B) {
	f := newRing(b, openSoft(b, b.TempDir()))
	base := f.generate(b, "soft", token.Ed448, token.UseSignAssertion)
	e, err := f.AddComposite(b.Context(), nil, CompositeSpec{
		Base: base.Udf, Token: "soft", Use: token.UseSign,
		Contribution: &token.PrivateKey{Algorithm: token.Ed448, Scalar: randomScalar(b, token.Ed448).Bytes()},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Sign(b.Context(), nil, token.SignRequest{Scheme: token.SchemeMeshEdDSA, Message: []byte("message")}); err != nil {
			b.Fatal(err)
		}
	}
}
