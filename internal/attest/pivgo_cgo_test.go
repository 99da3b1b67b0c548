//go:build cgo

package attest_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"testing"
	"time"

	pivgo "github.com/go-piv/piv-go/v2/piv"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestPIVGoAgrees has piv-go judge the same certificates: it takes what this package takes and reads the same in
// it, and refuses what this package refuses.
func TestPIVGoAgrees(t *testing.T) {
	t.Parallel()
	today, early, other := newCACard(t), newCard(t), newCACard(t)
	ec := newECDSA(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	with := func(n int, value ...byte) []pkix.Extension {
		x := slices.Clone(extensions())
		for i := range x {
			if x[i].Id[len(x[i].Id)-1] == n {
				x[i].Value = value
			}
		}
		return x
	}
	type judged struct {
		name string
		c    *card // who is trusted
		f9   *x509.Certificate
		cert *x509.Certificate
		want bool
	}
	var all []judged
	for _, slot := range []string{"9a", "9c", "9d", "9e", "82", "8f", "95"} {
		all = append(all, judged{"slot " + slot, today, today.f9, today.statement(t, slot, &ec.PublicKey, extensions()), true})
	}
	for _, public := range []any{&p384.PublicKey, &r.PublicKey, ed} {
		all = append(all, judged{fmt.Sprintf("key %T", public), today, today.f9, today.statement(t, "9a", public, extensions()), true})
	}
	for pin := range byte(3) {
		for touch := range byte(3) {
			cert := today.statement(t, "9a", &ec.PublicKey, with(8, pin+1, touch+1))
			all = append(all, judged{fmt.Sprintf("policies %d %d", pin+1, touch+1), today, today.f9, cert, true})
		}
	}
	good := today.statement(t, "9a", &ec.PublicKey, extensions())
	name := *today.f9
	name.PublicKey = nil
	namesake := &card{today.root, &name, other.f9Key} // its statements name the issuer, and it is not
	between := &card{today.root, good, ec}
	altered := *good
	altered.Raw = slices.Clone(good.Raw)
	altered.Raw[len(altered.Raw)-1] ^= 1
	if reread, err := x509.ParseCertificate(altered.Raw); err == nil {
		altered = *reread
	}
	critical := append(extensions(), pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
	expired := certificateUntil(t, today, time.Now().Add(-time.Minute), &ec.PublicKey)
	all = append(all,
		judged{"early card", early, early.f9, early.statement(t, "9a", &ec.PublicKey, extensions()), true},
		judged{"no serial number", early, early.f9, early.statement(t, "9a", &ec.PublicKey, slices.Delete(extensions(), 1, 2)), true},
		judged{"another maker", other, today.f9, good, false},
		judged{"another card of the same name", today, today.f9, other.statement(t, "9a", &ec.PublicKey, extensions()), false},
		judged{"another key of the same name", today, today.f9, namesake.statement(t, "9a", &ec.PublicKey, extensions()), false},
		judged{"by a key in a slot", today, good, between.statement(t, "9a", &p384.PublicKey, extensions()), false},
		judged{"altered signature", today, today.f9, &altered, false},
		judged{"expired", today, today.f9, expired, false},
		judged{"critical extension", today, today.f9, today.statement(t, "9a", &ec.PublicKey, critical), false},
		judged{"version of two octets", today, today.f9, today.statement(t, "9a", &ec.PublicKey, with(3, 5, 7)), false},
		judged{"policies of three octets", today, today.f9, today.statement(t, "9a", &ec.PublicKey, with(8, 1, 1, 1)), false},
		judged{"serial number that is none", today, today.f9, today.statement(t, "9a", &ec.PublicKey, with(7, 4, 1, 1)), false},
	)
	for _, j := range all {
		ours, ourErr := judge(t, j.c, j.f9, j.cert)
		roots := x509.NewCertPool()
		roots.AddCert(j.c.root)
		f9 := *j.f9 // it is changed
		theirs, theirErr := (&pivgo.Verifier{Roots: roots}).Verify(&f9, j.cert)
		if (ourErr == nil) != j.want || (theirErr == nil) != j.want {
			t.Errorf("%s: we say %v, piv-go %v, want taken: %t", j.name, ourErr, theirErr, j.want)
			continue
		}
		if !j.want {
			continue
		}
		v := theirs.Version
		want := attest.CardReport{
			Statement: ours.Statement, Slot: theirs.Slot.String(), Serial: int(theirs.Serial), Firmware: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch),
			PINPolicy:   map[pivgo.PINPolicy]string{pivgo.PINPolicyNever: "never", pivgo.PINPolicyOnce: "once", pivgo.PINPolicyAlways: "always"}[theirs.PINPolicy],
			TouchPolicy: map[pivgo.TouchPolicy]string{pivgo.TouchPolicyNever: "never", pivgo.TouchPolicyAlways: "always", pivgo.TouchPolicyCached: "cached"}[theirs.TouchPolicy],
		}
		if *ours != want {
			t.Errorf("%s: we read %+v, piv-go %+v", j.name, *ours, want)
		}
	}
}

// certificateUntil is a statement that is valid until a time.
func certificateUntil(t *testing.T, c *card, end time.Time, public any) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "YubiKey PIV Attestation 9a"}, ExtraExtensions: extensions(), SerialNumber: c.f9.SerialNumber,
		NotBefore: c.f9.NotBefore, NotAfter: end,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.f9, public, c.f9Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// judge verifies an answer that consists of a statement, with the certificate of slot F9 that is claimed.
func judge(t *testing.T, trusted *card, f9, cert *x509.Certificate) (*attest.CardReport, error) {
	t.Helper()
	id := (&card{f9: f9}).identity()
	c, s, err := attest.NewChallenge(id, attest.ChallengeOptions{Roots: []*x509.Certificate{trusted.root}, Validity: time.Hour})
	if err != nil {
		return nil, err
	}
	statement, err := attest.NewStatement(token.AttestPIV, publicOf(t, cert.PublicKey), "")
	if err != nil {
		t.Fatal(err)
	}
	a, err := attest.NewAnswer(statement, token.AttestEvidence{Format: token.AttestPIV, Key: cert.Raw, AttestationKey: f9.Raw})
	if err != nil {
		t.Fatal(err)
	}
	report, err := attest.Verify(a, c, s, attest.VerifyOptions{})
	if err != nil {
		return nil, err
	}
	return report.Card, nil
}

// publicOf returns a key of the standard library as the project has it.
func publicOf(t *testing.T, public any) token.PublicKey {
	t.Helper()
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		octets, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return token.PublicKey{Algorithm: map[elliptic.Curve]token.Algorithm{elliptic.P256(): token.P256, elliptic.P384(): token.P384}[k.Curve], Octets: octets}
	case *rsa.PublicKey:
		return token.PublicKey{Algorithm: token.RSA2048, Octets: x509.MarshalPKCS1PublicKey(k)}
	case ed25519.PublicKey:
		return token.PublicKey{Algorithm: token.Ed25519, Octets: k}
	}
	t.Fatalf("key of type %T", public)
	return token.PublicKey{}
}
