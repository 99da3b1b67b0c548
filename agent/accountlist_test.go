package agent

import (
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// manyDevices are made-up devices with long lists of roles, in no order.
func manyDevices(n int) (out []devicestate.Connected) {
	for i := range n {
		digits := base32.StdEncoding.EncodeToString(fmt.Appendf(nil, "%05d", i*7919%n))
		name := fmt.Sprintf("M%s-%s-%sAAA-AAAA-AAAA-AAAA-AAAA", digits[:3], digits[3:7], digits[7:])
		out = append(out, devicestate.Connected{Udf: name, Roles: slices.Repeat([]string{strings.Repeat("r", 60)}, 4), Entry: strictjson.Value(`{}`), Revoked: i%2 == 0})
	}
	return out
}

// TestAccountListPages lists two accounts with more devices than a frame holds: each device once, each page within a frame.
func TestAccountListPages(t *testing.T) {
	t.Parallel()
	const n = 1000
	a := newDeviceAgent(t)
	for _, address := range []string{"alice@example.com", "bob@example.com"} {
		var made mesh.AccountInitResponse
		ask(t, a, mesh.TagAccountInitRequest, mesh.AccountInitRequest{Home: mesh.Home{Token: "soft"}, Address: address}, mesh.TagAccountInitResponse, &made)
		if made.Status != mesh.StatusOK {
			t.Fatal(made.StatusDescription)
		}
	}
	x := &granting{admin: a}
	x.changeAccount(t, func(a *devicestate.Account) { a.Devices = manyDevices(n) })
	accounts, err := a.config.Device.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range accounts[0].Devices {
		names = append(names, accounts[0].Udf+" "+d.Udf)
	}
	slices.Sort(names)
	names = append(names, accounts[1].Udf+" none")

	var got []string
	var req mesh.AccountListRequest
	pages := 0
	for ; pages == 0 || req.After != ""; pages++ {
		var r mesh.AccountListResponse
		ask(t, a, mesh.TagAccountListRequest, req, mesh.TagAccountListResponse, &r)
		if r.Status != mesh.StatusOK || pages > n {
			t.Fatalf("page %d: %d %s", pages, r.Status, r.StatusDescription)
		}
		for _, account := range r.Accounts {
			if len(account.Profile) == 0 || len(account.Keys) == 0 {
				t.Errorf("page %d: account %s is not described", pages, account.Udf)
			}
			for _, d := range account.Devices {
				got = append(got, account.Udf+" "+d.Udf)
			}
			if len(account.Devices) == 0 {
				got = append(got, account.Udf+" none")
			}
		}
		req.After = r.Next
	}
	if pages < 2 || !slices.Equal(got, names) {
		t.Errorf("%d pages with %d devices, want %d", pages, len(got), len(names))
	}
	// A page may begin after a device that is there no more, or after all there is.
	for after, want := range map[string]int{accounts[0].Udf + placeDevice + "M": 1, accounts[0].Udf + placeApplication: 1, "N": 0} {
		var r mesh.AccountListResponse
		if ask(t, a, mesh.TagAccountListRequest, mesh.AccountListRequest{After: after}, mesh.TagAccountListResponse, &r); r.Status != mesh.StatusOK || min(len(r.Accounts), 1) != want {
			t.Errorf("after %q: %d, %d accounts", after, r.Status, len(r.Accounts))
		}
	}
	var r mesh.AccountListResponse
	ask(t, a, mesh.TagAccountListRequest, mesh.AccountListRequest{Account: accounts[0].Udf, Device: accounts[0].Devices[0].Udf, After: "M"}, mesh.TagAccountListResponse, &r)
	if r.Status != statusMalformed || !strings.HasPrefix(r.StatusDescription, "After: ") {
		t.Errorf("a page of a device: %d %s", r.Status, r.StatusDescription)
	}
	// Other answers about the account have no list of its devices, for which there would be no room.
	var shares mesh.AccountInitResponse
	if ask(t, a, mesh.TagAccountEscrowRequest, mesh.AccountEscrowRequest{Account: accounts[0].Udf}, mesh.TagAccountEscrowResponse, &shares); shares.Status != mesh.StatusOK {
		t.Errorf("escrow: %d %s", shares.Status, shares.StatusDescription)
	}
}
