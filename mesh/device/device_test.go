package device

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// now is when the published objects are read: their keys have no validity interval.
var now = time.Date(2024, 11, 1, 0, 0, 0, 0, time.UTC)

func load[T any](t testing.TB, name string) T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// fixtures returns the names of the fixtures that match; at least n must.
func fixtures(t testing.TB, pattern string, n int) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "testdata", pattern))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < n {
		t.Fatalf("%d fixtures match %s, there should be %d", len(names), pattern, n)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	slices.Sort(names)
	return names
}

type hexOctets []byte

func (h *hexOctets) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func sameHex(t testing.TB, what string, got, want []byte) {
	t.Helper()
	same(t, what, hex.EncodeToString(got), hex.EncodeToString(want))
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func wantStep(t testing.TB, what string, err error, step Step, object string, reason error) {
	t.Helper()
	e, ok := errors.AsType[*VerifyError](err)
	if !ok || e.Step != step || object != "" && e.Object != object || reason != nil && !errors.Is(err, reason) {
		t.Errorf("%s: got error %v, want step %s, %s, %v", what, err, step, object, reason)
	}
}

// generations runs a test in both.
func generations(t *testing.T, f func(t *testing.T, g mesh.Generation)) {
	t.Helper()
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		t.Run(g.String(), func(t *testing.T) {
			t.Parallel()
			f(t, g)
		})
	}
}

// someDevice is a device with its keys in memory.
type someDevice struct {
	seed    *mesh.Seed
	root    *mesh.LocalKey
	profile *ProfileDevice
	base    map[Operation]*token.PrivateKey
}

func (d *someDevice) agreer() *mesh.LocalKey { return must(mesh.NewLocalKey(d.base[Encrypt])) }

func newDevice(t testing.TB, g mesh.Generation, algorithms Algorithms) *someDevice {
	t.Helper()
	d := &someDevice{seed: must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)), base: map[Operation]*token.PrivateKey{}}
	d.root = must(mesh.NewLocalKey(must(DeviceKey(d.seed, Profiling, "", g))))
	spec := DeviceSpec{Generation: g}
	for o, to := range map[Operation]*token.PublicKey{Encrypt: &spec.Encryption, Sign: &spec.Signature, Authenticate: &spec.Authentication} {
		d.base[o] = must(DeviceKey(d.seed, o, algorithms.of(o), g))
		*to = must(mesh.PublicOf(d.base[o]))
	}
	profile, err := NewProfileDevice(t.Context(), d.root, spec)
	if err != nil {
		t.Fatal(err)
	}
	d.profile = profile
	return d
}

// someAccount is an account with its keys in memory.
type someAccount struct {
	seed    *mesh.Seed
	profile *ProfileUser
	admin   *mesh.LocalKey
}

func newAccount(t testing.TB, g mesh.Generation) *someAccount {
	t.Helper()
	a := &someAccount{seed: must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount))}
	spec := must(NewAccountSpec(a.seed, g))
	spec.Address = "alice@example.com"
	root := must(mesh.NewLocalKey(must(AccountKey(a.seed, Profiling, "", g))))
	profile, err := NewProfileUser(t.Context(), root, *spec)
	if err != nil {
		t.Fatal(err)
	}
	a.profile = profile
	a.admin = must(mesh.NewLocalKey(must(AccountKey(a.seed, AdminSign, "", g))))
	return a
}

func (a *someAccount) connector() Connector {
	return Connector{Account: a.profile, Administrator: a.admin}
}

func (a *someAccount) connect(t testing.TB, d *someDevice, r Rights) *CatalogedDevice {
	t.Helper()
	keys := must(NewAccountActivation(a.seed, r, a.profile))
	defer keys.Wipe()
	c, err := a.connector().Connect(t.Context(), Grant{Device: d.profile, Roles: []string{"message", "web"}, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func verification(a *someAccount, d *someDevice) Verification {
	return Verification{Account: a.profile.Name(), Device: d.profile, Base: d.agreer()}
}
