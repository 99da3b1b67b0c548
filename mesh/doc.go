// Package mesh has the Mathematical Mesh's own words: Uniform Data Fingerprints, keys
// derived from seeds, KeyData, the DARE envelope, its encryption and its signatures, and the
// messages of the agent's socket. Package jsonb below it reads JSON-B; package device has
// the objects by which a device belongs to an account.
//
// It follows draft-hallambaker-mesh-udf-13, -mesh-schema-08, -mesh-dare-12,
// -mesh-protocol-09 and -mesh-cryptography-08 where published data agrees with them, and
// the published data where it does not. Two generations of the wire format exist: G1, the
// drafts and the reference code until 2023, and G2, the reference code of 2024.
//
// The package opens no device, no socket and no file, decides whose signatures count for
// nothing, and does no arithmetic on curves (keyshare does). Private operations come in as
// Signer and Agreer. Seeds, scalars and content keys are handled without branches or table
// look-ups that depend on them, with two exceptions that are documented where they are: RSA
// keys (Derive, PrivateKeyRSA) and Shamir shares (SplitSecret, RecoverSecret) are computed
// with math/big, whose running time depends on its operands. Secrets that Mesh objects hold
// as text pass through the JSON decoder, which cannot wipe its copies.
package mesh
