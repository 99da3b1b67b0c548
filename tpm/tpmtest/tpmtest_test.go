package tpmtest_test

import (
	"encoding/hex"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// getRandom sends TPM2_GetRandom for 8 octets.
func getRandom(t *testing.T, socket string) []byte {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	command, _ := hex.DecodeString("80010000000c0000017b0008")
	if _, err := c.Write(command); err != nil {
		t.Fatal(err)
	}
	response := make([]byte, 10+2+8)
	if _, err := io.ReadFull(c, response); err != nil {
		t.Fatal(err)
	}
	return response
}

func TestStart(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	for _, restart := range []func(){func() {}, tpm.Restart, tpm.Replace} {
		restart()
		if got := getRandom(t, tpm.Socket); [6]byte(got) != [6]byte{0x80, 1, 0, 0, 0, 20} {
			t.Errorf("TPM2_GetRandom returned %x", got)
		}
	}
	tpm.Kill()
	tpm.Kill()
	if _, err := net.Dial("unix", tpm.Socket); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect to a killed TPM: %v, want ECONNREFUSED", err)
	}
}
