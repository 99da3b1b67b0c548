package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
)

// makeSoftHSM makes a SoftHSM token and a config.toml here that names it hsm.
func makeSoftHSM(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 || neg {
		ts.Fatalf("usage: softhsm")
	}
	s := hsmtest.SoftHSM(ts.Value(testingKey{}).(testing.TB))
	var quoted []string
	for _, v := range s.Environment {
		quoted = append(quoted, strconv.Quote(v))
	}
	text := fmt.Sprintf("[[pkcs11]]\nmodule = %q\nenvironment = [%s]\ntokens = { hsm = \"pkcs11:token=%s\" }\n",
		s.Path, strings.Join(quoted, ", "), s.Label)
	ts.Check(os.WriteFile(ts.MkAbs("config.toml"), []byte(text), 0o600))
}
