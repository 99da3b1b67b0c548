//go:build cgo

package hsm

import (
	"os"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/miekg/pkcs11"
)

// rawSign signs in this process, with a pool of sessions and nothing around it.
func rawSign(b *testing.B, s hsmtest.Setup, k *signKey, sessions int) {
	for _, v := range s.Environment {
		name, value, _ := strings.Cut(v, "=")
		b.Setenv(name, value)
		os.Setenv(name, value)
	}
	c, _, err := k.request(tokentest.DefaultSignRequest(k.public.Algorithm, []byte("message")))
	if err != nil {
		b.Fatal(err)
	}
	p := pkcs11.New(s.Path)
	if err := p.Initialize(); err != nil {
		b.Fatal(err)
	}
	defer p.Destroy()
	defer p.Finalize()
	slots, err := p.GetSlotList(true)
	if err != nil {
		b.Fatal(err)
	}
	pool := make(chan pkcs11.SessionHandle, sessions)
	var key pkcs11.ObjectHandle
	for i := range sessions {
		h, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			b.Fatal(err)
		}
		if i == 0 {
			if err := p.Login(h, pkcs11.CKU_USER, hsmtest.PIN); err != nil {
				b.Fatal(err)
			}
			key = rawFind(b, p, h, k.handle.id)
		}
		pool <- h
	}
	parallel(b, sessions, func() error {
		h := <-pool
		defer func() { pool <- h }()
		if err := p.SignInit(h, mech(c.mech), key); err != nil {
			return err
		}
		_, err := p.Sign(h, c.data[0])
		return err
	})
}

func rawFind(b *testing.B, p *pkcs11.Ctx, h pkcs11.SessionHandle, id []byte) pkcs11.ObjectHandle {
	b.Helper()
	template := attrs([]attribute{number(ckaClass, ckoPrivateKey), octets(ckaID, id)})
	if err := p.FindObjectsInit(h, template); err != nil {
		b.Fatal(err)
	}
	defer p.FindObjectsFinal(h)
	found, _, err := p.FindObjects(h, 1)
	if err != nil || len(found) != 1 {
		b.Fatalf("%d keys, %v", len(found), err)
	}
	return found[0]
}
