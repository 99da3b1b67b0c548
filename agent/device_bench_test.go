package agent

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// FuzzApplicationCatalog has no entry of a catalog make the agent panic.
func FuzzApplicationCatalog(f *testing.F) {
	f.Add([]byte(`{"CatalogedApplicationSsh":{"ClientKey":{"PublicParameters":{"PublicKeyECDH":{"crv":"X25519","Public":"CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}}}}`))
	f.Add([]byte(`{"CatalogedApplicationMail":{"SmimeSign":{"PrivateParameters":{}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := catalogKeys([]strictjson.Value{data})
		if err == nil {
			for _, k := range keys {
				if len(k.public.Octets) == 0 {
					t.Errorf("%s: an empty key", data)
				}
			}
		}
	})
}

// BenchmarkActivate verifies a connection and opens its activations; the keys are there already.
func BenchmarkActivate(b *testing.B) {
	a := newDeviceAgent(b)
	d := initDevice(b, a, mesh.DeviceInitRequest{})
	x := newTestAccount(b, mesh.G1)
	approve(b, a, x.Account.Name())
	entry := x.connect(b, d)
	b.ReportAllocs()
	for b.Loop() {
		if r := activate(b, a, entry); r.Status != mesh.StatusOK {
			b.Fatal(r.StatusDescription)
		}
	}
}

// BenchmarkConnect connects a device on the administrator's side.
func BenchmarkConnect(b *testing.B) {
	d := initDevice(b, newDeviceAgent(b), mesh.DeviceInitRequest{})
	x := newTestAccount(b, mesh.G1)
	b.ReportAllocs()
	for b.Loop() {
		x.connect(b, d)
	}
}
