package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
)

type cardKey struct{}

// virtualCard is a PIV card in a reader of a pcscd of our own.
type virtualCard struct {
	card   *pivtest.Card
	reader *pivtest.Reader
}

// makeCard puts a new PIV card, number 5700001, into a reader that $PCSCLITE_CSOCK_NAME leads to. The
// folder maker gets the certificate of its maker.
func makeCard(ts *testscript.TestScript, neg bool, args []string) {
	var config pivtest.Config
	if len(args) > 1 || neg {
		ts.Fatalf("usage: pivcard [FIRMWARE]")
	}
	for _, v := range args {
		_, err := fmt.Sscanf(v, "%d.%d.%d", &config.Version[0], &config.Version[1], &config.Version[2])
		ts.Check(err)
	}
	daemon := pivtest.StartDaemon(ts.Value(testingKey{}).(testing.TB))
	card := pivtest.NewCard(config)
	card.SetTouch(pivtest.TouchAwaited)
	*ts.Value(cardKey{}).(*virtualCard) = virtualCard{card, daemon.AddReader("Yubico YubiKey OTP+FIDO+CCID 00 00", card)}
	ts.Setenv("PCSCLITE_CSOCK_NAME", daemon.Socket)
	ts.Check(os.Mkdir(ts.MkAbs("maker"), 0o755))
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: card.AttestationRoot().Raw})
	ts.Check(os.WriteFile(ts.MkAbs("maker/root.pem"), root, 0o644))
}

// cardSlot generates a P-256 key in a slot of the card, as another program may, or imports one into slot 9a.
func cardSlot(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: pivkey SLOT|imported")
	}
	card := ts.Value(cardKey{}).(*virtualCard).card
	if args[0] == "imported" {
		importIntoCard(ts, card)
		return
	}
	slot, err := strconv.ParseUint(args[0], 16, 8)
	ts.Check(err)
	_, err = card.Generate(byte(slot), pivtest.AlgP256, pivtest.PINPolicyOnce, pivtest.TouchPolicyNever)
	ts.Check(err)
}

func importIntoCard(ts *testscript.TestScript, card *pivtest.Card) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	ts.Check(card.Put(pivtest.SlotAuthentication, key, pivtest.PINPolicyOnce, pivtest.TouchPolicyNever))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "imported"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	ts.Check(err)
	object := append([]byte{0x70, 0x82, byte(len(der) >> 8), byte(len(der))}, der...) // SP 800-73-4 Part 1, Table 10
	card.SetObject(0x5FC105, append(object, 0x71, 1, 0, 0xFE, 0))
}

// touchCard waits until the card waits for a touch, or touches it.
func touchCard(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: pivtouch wait|give|late")
	}
	card := ts.Value(cardKey{}).(*virtualCard).card
	switch args[0] {
	case "wait":
		<-card.TouchWaits()
	case "give":
		card.Answer(true)
	case "late":
		card.Answer(false)
	}
}

// plugCard plugs the card in, or out.
func plugCard(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 {
		ts.Fatalf("usage: [!] pivplug")
	}
	reader := ts.Value(cardKey{}).(*virtualCard).reader
	if neg {
		reader.Unplug()
		return
	}
	reader.Plug()
}

// muteCard has the card not answer, or answer again.
func muteCard(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 {
		ts.Fatalf("usage: [!] pivmute")
	}
	reader := ts.Value(cardKey{}).(*virtualCard).reader
	if neg {
		reader.Speak()
		return
	}
	reader.Silence()
}
