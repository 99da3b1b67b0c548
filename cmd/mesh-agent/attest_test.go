package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// manufacturerKey is the key of the makers of TPMs that a script carries.
type manufacturerKey struct{}

// buyTPM runs a TPM with certificates of a maker, which comes to be when it is first named.
func buyTPM(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: buytpm VAR MAKER")
	}
	tb := ts.Value(testingKey{}).(testing.TB)
	makers := ts.Value(manufacturerKey{}).(map[string]*tpmtest.CA)
	if makers[args[1]] == nil {
		makers[args[1]] = tpmtest.NewCA(tb)
	}
	ts.Setenv(args[0], makers[args[1]].Start(tb).Device())
	ts.Setenv(args[1], makers[args[1]].Certificates)
}
