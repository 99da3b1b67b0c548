package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"

	"github.com/rogpeppe/go-internal/testscript"
)

// What a mail program would do around the agent: take CMS and OpenPGP messages apart.

// startGnuPG gives GnuPG a home with a short name, as its sockets need.
func startGnuPG(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 || neg {
		ts.Fatalf("usage: gnupg")
	}
	dir, err := os.MkdirTemp("", "pg")
	ts.Check(err)
	ts.Setenv("GNUPGHOME", dir)
	ts.Defer(func() {
		c := exec.Command("gpgconf", "--homedir", dir, "--kill", "all")
		if out, err := c.CombinedOutput(); err != nil {
			ts.Logf("end GnuPG: %v\n%s", err, out)
		}
		ts.Check(os.RemoveAll(dir))
	})
}

// takeCMS writes FILE.key, the encrypted content key, FILE.iv and FILE.body of an EnvelopedData.
func takeCMS(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: takecms FILE")
	}
	key, iv, body, err := parseCMS([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	for name, b := range map[string][]byte{".key": key, ".iv": iv, ".body": body} {
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+name), b, 0o600))
	}
}

// parseCMS reads a ContentInfo with EnvelopedData for one KeyTransRecipientInfo
// (RFC 5652, Sections 3 and 6).
func parseCMS(der []byte) (key, iv, body []byte, err error) {
	type recipient struct {
		Version    int
		ID         asn1.RawValue
		Algorithm  pkix.AlgorithmIdentifier
		Ciphertext []byte
	}
	var info struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version    int
			Recipients []recipient `asn1:"set"`
			Encrypted  struct {
				Type       asn1.ObjectIdentifier
				Algorithm  pkix.AlgorithmIdentifier
				Ciphertext []byte `asn1:"tag:0"`
			}
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, nil, nil, err
	}
	if len(info.Content.Recipients) != 1 {
		return nil, nil, nil, fmt.Errorf("%d recipients", len(info.Content.Recipients))
	}
	_, err = asn1.Unmarshal(info.Content.Encrypted.Algorithm.Parameters.FullBytes, &iv)
	return info.Content.Recipients[0].Ciphertext, iv, info.Content.Encrypted.Ciphertext, err
}

// takePGP writes FILE.key, the encrypted session key of an OpenPGP message for an RSA key of 2048 bits.
func takePGP(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: takepgp FILE")
	}
	tag, body, _, err := cutPacket([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	if tag != 1 || len(body) < 10 || body[0] != 3 || body[9] != 1 {
		ts.Fatalf("not a session key for an RSA key: packet %d, %.10x", tag, body)
	}
	mpi, _, err := cutMPI(body[10:])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), mpi.FillBytes(make([]byte, 256)), 0o600))
}

// takePGPSecret writes the RSA subkey of an exported OpenPGP secret key, which has no passphrase, as PKCS #8.
func takePGPSecret(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: takepgpsecret FILE OUT")
	}
	rest := []byte(ts.ReadFile(args[0]))
	for {
		tag, body, after, err := cutPacket(rest)
		ts.Check(err)
		if rest = after; tag != 7 {
			continue
		}
		key, err := parsePGPSecret(body)
		ts.Check(err)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
		return
	}
}

// parsePGPSecret reads the body of a secret key packet (RFC 9580, Section 5.5.3) without protection.
func parsePGPSecret(body []byte) (*rsa.PrivateKey, error) {
	if len(body) < 6 || body[0] != 4 || body[5] != 1 {
		return nil, errors.New("not a version 4 RSA key")
	}
	var numbers [5]*big.Int // n, e, d, p, q
	rest := body[6:]
	for i := range numbers {
		if i == 2 {
			if len(rest) == 0 || rest[0] != 0 {
				return nil, errors.New("the secret key is protected")
			}
			rest = rest[1:]
		}
		var err error
		if numbers[i], rest, err = cutMPI(rest); err != nil {
			return nil, err
		}
	}
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: numbers[0], E: int(numbers[1].Int64())}, D: numbers[2], Primes: numbers[3:],
	}
	key.Precompute()
	return key, key.Validate()
}

// cutPacket takes a packet of either format from the front (RFC 9580, Section 4.2).
func cutPacket(b []byte) (tag byte, body, rest []byte, err error) {
	short := errors.New("packet is cut off")
	if len(b) < 6 || b[0]&0x80 == 0 {
		return 0, nil, nil, short
	}
	var header, n int
	switch first, length := b[0], b[1]; {
	case first&0x40 == 0:
		tag, header = first>>2&15, [4]int{2, 3, 5, 0}[first&3]
		if header == 0 {
			return 0, nil, nil, errors.New("packet of indeterminate length")
		}
		n = number(b[1:header])
	case length < 192:
		tag, header, n = first&63, 2, int(length)
	case length < 224:
		tag, header, n = first&63, 3, int(length-192)<<8+int(b[2])+192
	case length == 255:
		tag, header, n = first&63, 6, number(b[2:6])
	default:
		return 0, nil, nil, errors.New("packet in parts")
	}
	if n > len(b)-header {
		return 0, nil, nil, short
	}
	return tag, b[header : header+n], b[header+n:], nil
}

// cutMPI takes a number from the front (RFC 9580, Section 3.2).
func cutMPI(b []byte) (*big.Int, []byte, error) {
	if len(b) < 2 {
		return nil, nil, errors.New("number is cut off")
	}
	n := (number(b[:2]) + 7) / 8
	if n > len(b)-2 {
		return nil, nil, errors.New("number is cut off")
	}
	return new(big.Int).SetBytes(b[2 : 2+n]), bytes.Clone(b[2+n:]), nil
}

// number reads octets as a number, big endian.
func number(b []byte) (n int) {
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n
}
