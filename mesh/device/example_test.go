package device_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// ok stands for handling errors.
func ok[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A device is connected to an account by what the two sides send each other. Here all keys
// are in memory; the profile's root, the administrator's key and the device's base key
// for encryption may as well be in tokens.
func Example() {
	ctx := context.Background()

	// The administrator makes the account, once.
	accountSeed := ok(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount))
	spec := ok(device.NewAccountSpec(accountSeed, mesh.G1))
	spec.Address = "alice@example.com"
	accountRoot := ok(mesh.NewLocalKey(ok(device.AccountKey(accountSeed, device.Profiling, "", mesh.G1))))
	account := ok(device.NewProfileUser(ctx, accountRoot, *spec))
	shares := ok(device.SplitSeed(rand.Reader, accountSeed, 2, 3))
	pin := ok(device.GeneratePIN(rand.Reader))

	// The device makes its profile and asks.
	deviceSeed := ok(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice))
	key := func(o device.Operation) *mesh.LocalKey {
		return ok(mesh.NewLocalKey(ok(device.DeviceKey(deviceSeed, o, "", mesh.G1))))
	}
	profile := ok(device.NewProfileDevice(ctx, key(device.Profiling), device.DeviceSpec{
		Encryption:     key(device.Encrypt).Public(),
		Signature:      key(device.Sign).Public(),
		Authentication: key(device.Authenticate).Public(),
	}))
	request := ok(device.NewRequestConnection(rand.Reader, profile, "alice@example.com", pin))
	asked := ok(request.Envelope().Marshal())

	// The administrator checks the PIN and connects.
	got := ok(device.ParseRequestConnection(asked, time.Now()))
	if err := got.CheckPIN(pin, "alice@example.com"); err != nil {
		panic(err)
	}
	keys := ok(device.NewAccountActivation(accountSeed, device.Rights{Common: true}, account))
	defer keys.Wipe()
	connector := device.Connector{
		Account:       account,
		Administrator: ok(mesh.NewLocalKey(ok(device.AccountKey(accountSeed, device.AdminSign, "", mesh.G1)))),
	}
	entry := ok(connector.Connect(ctx, device.Grant{Device: got.Profile, Roles: []string{"message"}, Keys: keys}))
	answer := ok(ok(connector.Respond(ctx, got.Profile, got.MessageID, entry)).Marshal())

	// The device, whose user approved the account, verifies and takes its keys.
	response := ok(device.OpenRespondConnection(ctx, ok(mesh.ParseEnvelope(answer)), key(device.Encrypt)))
	membership := ok(device.Verification{
		Account: account.Name(), Device: profile, Base: key(device.Encrypt), History: &device.History{},
	}.Verify(ctx, response.CatalogedDevice))
	defer membership.Wipe()
	history := (&device.History{}).Adopt(response.CatalogedDevice, nil)

	fmt.Println(len(shares), "shares in escrow")
	fmt.Println("roles", membership.Roles)
	for _, c := range membership.Contributions {
		fmt.Println("combined key for", c.Operation, "on", c.Combined.Algorithm)
	}
	fmt.Println(len(membership.Keys.Entries), "stores can be read")
	fmt.Println(len(history.Current), "digests to remember")
	// Output:
	// 3 shares in escrow
	// roles [message]
	// combined key for Encrypt on X448
	// combined key for Sign on Ed448
	// combined key for Authenticate on X448
	// 9 stores can be read
	// 5 digests to remember
}
