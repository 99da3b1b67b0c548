package agent

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestShareOfAGroup takes a member's share of a group's key, confirmed by the share's own name: the name of the whole key, which the
// catalog has, says nothing about a share.
func TestShareOfAGroup(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	group, err := mesh.NewKeyData(x.Account.Encryption, mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	share, err := keyshare.RandomScalar(keyshare.X448, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := token.PublicKey{Algorithm: token.X448, Octets: share.Public().Bytes()}
	udf, err := mesh.Fingerprint(public, mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	private := &mesh.KeyData{Udf: group.Udf, PublicParameters: group.PublicParameters, PrivateParameters: &mesh.PrivateParameters{KeyShare: &mesh.KeyShare{
		PublicPrimary: group.PublicParameters, ServiceAddress: "example.com",
		Share: &mesh.PrivateParameters{PrivateKeyECDH: &mesh.PrivateKeyECDH{Curve: "X448z", Private: share.Bytes()}},
	}}}
	entry := x.connect(t, d, func(g *device.Grant) {
		g.Applications = []device.ApplicationGrant{{Kind: "Group", Identifier: "group@example.com", Keys: map[string]*mesh.KeyData{"AccountEncryption": private}}}
	})
	catalog := []byte(`{"CatalogedApplicationGroup":{"AccountEncryption":` + string(mesh.MarshalKeyDataPublic(x.Account.Encryption, mesh.G1)) + `}}`)
	r := activate(t, a, entry, func(req *mesh.DeviceActivateRequest) { req.Applications = append(req.Applications, catalog) })
	if r.Status != mesh.StatusOK || len(r.Refused) != 1 || !strings.Contains(r.Refused[0], "AccountEncryption "+udf+": nobody signed it") {
		t.Fatalf("by the whole key's name: %d %s, refused %q, want %s", r.Status, r.StatusDescription, r.Refused, udf)
	}
	r = activate(t, a, entry, func(req *mesh.DeviceActivateRequest) { req.Accept = []string{udf} })
	if k := keyNamed(t, r.Account.Keys, "AccountEncryption"); len(r.Refused) != 0 || k.Udf != udf || k.Use != "decrypt" {
		t.Errorf("by its own: %+v, refused %q", k, r.Refused)
	}
}
