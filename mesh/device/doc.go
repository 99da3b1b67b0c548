// Package device has the objects by which a device belongs to a Mesh account, seen from
// both sides, and the procedure that verifies them.
//
// A device has a profile: base keys that never change, under a root key that signs once.
// It asks an account's administrator for a connection (Request). The administrator draws a
// contribution to each base key, signs the combined public keys (Connection) and sends the
// seed of the contributions encrypted to the device (DeviceActivation), with what the
// device may hold of the account's own keys (AccountActivation). All that is a
// CatalogedDevice. Verification.Verify accepts it or names the step at which it fails;
// what is wrong in any smaller part is found there too.
//
// It follows draft-hallambaker-mesh-schema-08, Sections 3 to 7, and
// draft-hallambaker-mesh-protocol-09, Sections 4 and 5, where published data agrees with
// them, in the two generations of package mesh. Objects of one generation are never
// accepted in place of the other's, and names of keys are recomputed from the keys, since
// the Udf members are claims of whoever wrote them.
//
// The package does no I/O and keeps nothing: it does not know when an account is trusted for
// the first time, asks nobody, and holds private keys only where they arrive in
// an activation or are made for one. Private operations come in as mesh.Signer and mesh.Agreer.
package device
