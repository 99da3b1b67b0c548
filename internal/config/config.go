// Package config reads the configuration file of the daemon: TOML, in which a key
// that nobody knows is an error. It opens nothing that the configuration names.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/BurntSushi/toml"
)

// SoftwareKeys says whether there is a token `soft`, and what protects its keys.
type SoftwareKeys string

// The kinds of software keys. The zero value is none.
const (
	SoftwareKeysNone       SoftwareKeys = ""
	SoftwareKeysPassphrase SoftwareKeys = "passphrase"
	SoftwareKeysInsecure   SoftwareKeys = "insecure"
)

// TPMOff is the Config.TPM of an agent that uses no TPM even if there is one.
const TPMOff = "off"

// Config is what the file says; flags of `mesh-agent serve` go before it. An example:
//
//	software-keys = "passphrase"
//	tpm = "/dev/tpmrm0"
type Config struct {
	// State is the folder of the key records. Default: $XDG_STATE_HOME/mesh-agent,
	// else ~/.local/state/mesh-agent.
	State string `toml:"state"`
	// SoftwareKeys enables the token `soft`: "passphrase" protects its keys by a passphrase,
	// "insecure" by a random key in a file beside them. Absent: there is no such token.
	SoftwareKeys SoftwareKeys `toml:"software-keys"`
	// TPM is the device of the token `tpm`: a path such as /dev/tpmrm0, "swtpm:" and the
	// path of a simulator's unix socket, "tcp:HOST:PORT", or "off". Absent: $MESH_AGENT_TPM, else
	// /dev/tpmrm0 if the machine has it.
	TPM string `toml:"tpm"`
	// RollbackGuard names a token that counts changes of the key records, "tpm", so that an old
	// copy of the state folder is noticed. Absent: none. Once it was set it must be.
	RollbackGuard string `toml:"rollback-guard"`
	// PIV are the serial numbers of the PIV cards that may be used; their tokens are named piv:SERIAL.
	PIV []uint32 `toml:"piv"`
	// PKCS11 are the modules that may be loaded.
	PKCS11 []PKCS11 `toml:"pkcs11"`
	// Prompt is the program that asks for PINs. Absent: nobody is asked.
	Prompt Prompt `toml:"prompt"`
}

// Parse reads a configuration. Unknown keys and impossible values are errors.
func Parse(text []byte) (Config, error) {
	var c Config
	meta, err := toml.Decode(string(text), &c)
	if err != nil {
		return Config{}, err
	}
	if unknown := meta.Undecoded(); len(unknown) != 0 {
		return Config{}, fmt.Errorf("unknown key %q (known: state, software-keys, tpm, rollback-guard, piv, pkcs11, prompt)", unknown[0].String())
	}
	if err := checkPKCS11(c.PKCS11); err != nil {
		return Config{}, err
	}
	if err := checkPIV(c.PIV); err != nil {
		return Config{}, err
	}
	if err := checkPrompt(&c.Prompt); err != nil {
		return Config{}, err
	}
	switch c.SoftwareKeys {
	case SoftwareKeysNone, SoftwareKeysPassphrase, SoftwareKeysInsecure:
		return c, nil
	}
	return Config{}, fmt.Errorf("software-keys is %q, not %q or %q", string(c.SoftwareKeys), SoftwareKeysPassphrase, SoftwareKeysInsecure)
}

// Load reads the configuration file at path.
func Load(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(text)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return c, nil
}

// LoadDefault is Load, but a file that does not exist is an empty configuration.
func LoadDefault(path string) (Config, error) {
	c, err := Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	return c, err
}
