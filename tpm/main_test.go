package tpm

import (
	"os"
	"testing"

	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func TestMain(m *testing.M) { os.Exit(tokentest.Main(m)) }
