package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// PKCS11 names one PKCS #11 module and its tokens. Modules are loaded only if they are named
// here. An example:
//
//	[[pkcs11]]
//	module = "/usr/lib/softhsm/libsofthsm2.so"
//	environment = ["SOFTHSM2_CONF=/etc/softhsm/softhsm2.conf"]
//	tokens = { hsm = "pkcs11:token=mytoken;serial=0123456789abcdef" }
type PKCS11 struct {
	// Module is the absolute path of the shared library.
	Module string `toml:"module"`
	// Arguments is what the module gets at its initialization; only a few want it (NSS).
	Arguments string `toml:"arguments"`
	// Environment is the whole environment of the process that loads the module, NAME=VALUE each.
	Environment []string `toml:"environment"`
	// Sessions is how many operations run at once on one token. Absent: 4.
	Sessions int `toml:"sessions"`
	// Tokens names the tokens to use: a name for --token, and a PKCS #11 URI (RFC 7512).
	Tokens map[string]string `toml:"tokens"`
}

// builtinTokens are names that tokens of modules cannot have.
var builtinTokens = []string{"soft", "tpm"}

// checkPKCS11 finds what cannot be right without looking at the machine.
func checkPKCS11(modules []PKCS11) error {
	seen := map[string]bool{}
	for _, m := range modules {
		switch {
		case !filepath.IsAbs(m.Module) || filepath.Clean(m.Module) != m.Module:
			return fmt.Errorf("pkcs11: module %q is not an absolute path", m.Module)
		case len(m.Tokens) == 0:
			return fmt.Errorf("pkcs11: module %s has no tokens", m.Module)
		case m.Sessions < 0 || m.Sessions > 64:
			return fmt.Errorf("pkcs11: %d sessions, not 1 to 64", m.Sessions)
		}
		for _, v := range m.Environment {
			if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
				return errors.New("pkcs11: environment has an entry that is not NAME=VALUE")
			}
		}
		for name := range m.Tokens {
			switch {
			case !isTokenName(name):
				return fmt.Errorf("pkcs11: token name %q: want letters, digits, dots, hyphens and underscores", name)
			case seen[name] || slices.Contains(builtinTokens, name):
				return fmt.Errorf("pkcs11: token name %q is taken", name)
			}
			seen[name] = true
		}
	}
	return nil
}

func isTokenName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}
