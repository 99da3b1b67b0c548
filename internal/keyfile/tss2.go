package keyfile

import "bytes"

// IsTSS2 reports whether data is a key of a TPM (draft-bottomley-tpm2-keys): a file in which no
// private key is, but what its own TPM needs to find one. Parse refuses it; the TPM's
// token takes it as it is.
func IsTSS2(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN TSS2 PRIVATE KEY-----"))
}
