package agent

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// applicationBits is the size of the keys of applications, that of all published ones.
const applicationBits = 2048

// maxAnswer is the size of an answer that a device gets. The rest of a frame is for the entries of the account's
// applications by which it confirms the keys, without those that are escrowed.
const maxAnswer = maxReply / 8 * 7

// About what the activation of an application takes in a device's entry. The answer is the base64url of the entry.
const (
	sizeSSH  = 4 << 10
	sizeMail = 12 << 10
)

// accountGrant answers AccountGrantRequest.
func (r *request) accountGrant(ctx context.Context, req mesh.AccountGrantRequest) (any, error) {
	if !req.GrantSsh && len(req.GrantMail) == 0 {
		return nil, malformed("GrantSsh", "GrantSsh or GrantMail expected")
	}
	if err := checkGrants(req.ApplicationGrants); err != nil {
		return nil, err
	}
	a, d, err := r.connected(req.Account, req.Device)
	if err != nil {
		return nil, err
	}
	if d.Revoked {
		return nil, &failure{statusState, "Device: it was revoked"}
	}
	old, err := device.ParseCatalogedDevice(d.Entry)
	if err != nil {
		return nil, err
	}
	if err := checkRoom(old, req.ApplicationGrants); err != nil {
		return nil, err
	}
	grants, err := r.applications(ctx, a, req.ApplicationGrants)
	if err != nil {
		return nil, err
	}
	defer wipeGrants(grants)
	entry, answer, err := r.grantTo(ctx, a, old, grants)
	if err == nil {
		err = checkAnswer(answer)
	}
	if err != nil {
		return nil, err
	}
	if d.Entry, err = entry.Marshal(); err != nil {
		return nil, err
	}
	if err := r.putAccount(ctx, a.Account); err != nil {
		return nil, err
	}
	return connectReply(a, entry, answer, d.Entry), nil
}

func checkGrants(want mesh.ApplicationGrants) error {
	if len(want.GrantMail) >= maxApplications {
		return malformed("GrantMail", "fewer than %d expected", maxApplications)
	}
	for _, address := range want.GrantMail {
		if checkAddress(address) != nil {
			return malformed("GrantMail", "an address such as alice@example.com expected")
		}
	}
	return nil
}

// keepGrants adds to what is wanted the applications that a device has which is connected again.
func keepGrants(want *mesh.ApplicationGrants, a *administered, name string) error {
	i := slices.IndexFunc(a.Devices, func(d devicestate.Connected) bool { return d.Udf == name && !d.Revoked })
	if i < 0 {
		return nil
	}
	old, err := device.ParseCatalogedDevice(a.Devices[i].Entry)
	if err != nil {
		return err
	}
	for _, x := range old.Applications {
		address, mail := strings.CutPrefix(x.Identifier, device.MailIdentifier(""))
		switch {
		case !slices.ContainsFunc(a.Applications, func(has devicestate.Application) bool { return has.Identifier == x.Identifier }):
		case !mail:
			want.GrantSsh = true
		case !slices.Contains(want.GrantMail, address):
			want.GrantMail = append(want.GrantMail, address)
		}
	}
	return nil
}

var errNoRoom = &failure{statusState, fmt.Sprintf("Device: its entry would not fit into a frame, which holds the keys of about %d mail addresses; grant it fewer applications", maxAnswer/4*3/sizeMail)}

// checkRoom estimates, before any key is made, whether an entry has room for more applications.
func checkRoom(old *device.CatalogedDevice, want mesh.ApplicationGrants) error {
	sizes := map[string]int{}
	if old != nil {
		for _, x := range old.Applications {
			if x.Envelope != nil {
				sizes[x.Identifier] = len(x.Envelope.Body) / 3 * 4
			}
		}
	}
	for _, address := range want.GrantMail {
		sizes[device.MailIdentifier(address)] = sizeMail
	}
	if want.GrantSsh {
		sizes[device.KindSSH] = sizeSSH
	}
	total := 0
	for _, n := range sizes {
		total += n
	}
	if len(sizes) > maxApplications || total > maxAnswer/4*3 {
		return errNoRoom
	}
	return nil
}

// checkAnswer looks, before a device's entry is kept, whether the device can be given the answer.
func checkAnswer(answer []byte) error {
	if len(answer) > maxAnswer {
		return errNoRoom
	}
	return nil
}

// grantTo makes a device's entry with more applications, and the answer that holds it. The answer is
// to no request; it is encrypted to the device's base key, which opens it in no program but the agent.
func (r *request) grantTo(ctx context.Context, a *administered, old *device.CatalogedDevice, grants []device.ApplicationGrant) (next *device.CatalogedDevice, answer strictjson.Value, err error) {
	c, err := r.connector(a)
	if err != nil {
		return nil, nil, err
	}
	if next, err = c.GrantApplications(ctx, old, grants); err != nil {
		return nil, nil, err
	}
	profile, err := device.ParseProfileDevice(next.ProfileDevice, time.Now())
	if err != nil {
		return nil, nil, err
	}
	id, err := mesh.GenerateNonce(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	e, err := c.Respond(ctx, profile, id, next)
	if err != nil {
		return nil, nil, err
	}
	answer, err = e.Marshal()
	return next, answer, err
}

// applications returns activations of applications that checkGrants found good, and makes those that the
// account has not. Whoever calls it writes the account's record and wipes the result.
func (r *request) applications(ctx context.Context, a *administered, want mesh.ApplicationGrants) (grants []device.ApplicationGrant, err error) {
	defer func() {
		if err != nil {
			wipeGrants(grants)
		}
	}()
	if want.GrantSsh {
		g, err := r.application(ctx, a, device.KindSSH, "")
		if err != nil {
			return grants, err
		}
		grants = append(grants, *g)
	}
	for _, address := range want.GrantMail {
		g, err := r.application(ctx, a, device.KindMail, address)
		if err != nil {
			return grants, err
		}
		grants = append(grants, *g)
	}
	return grants, nil
}

func wipeGrants(grants []device.ApplicationGrant) {
	for _, g := range grants {
		g.Wipe()
	}
}

// application opens the keys of one application, or makes it.
func (r *request) application(ctx context.Context, a *administered, kind, address string) (*device.ApplicationGrant, error) {
	i := slices.IndexFunc(a.Applications, func(x devicestate.Application) bool {
		return x.Kind == kind && (address == "" || x.Identifier == device.MailIdentifier(address))
	})
	if i < 0 {
		return r.makeApplication(a, kind, address)
	}
	text, err := r.open(ctx, a.Account, a.Applications[i].Keys)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	opened, err := device.ParseApplicationActivation(text, a.profile.Generation)
	if err != nil {
		return nil, err
	}
	return &device.ApplicationGrant{Kind: kind, Identifier: a.Applications[i].Identifier, Keys: opened.Keys}, nil
}

// makeApplication makes the keys of an application and adds them, encrypted, to the account.
func (r *request) makeApplication(a *administered, kind, address string) (*device.ApplicationGrant, error) {
	g := &device.ApplicationGrant{Kind: kind, Keys: map[string]*mesh.KeyData{}}
	if err := r.addApplication(a, g, address); err != nil {
		g.Wipe()
		return nil, err
	}
	return g, nil
}

func (r *request) addApplication(a *administered, g *device.ApplicationGrant, address string) (err error) {
	if len(a.Applications) >= maxApplications {
		return &failure{statusState, fmt.Sprintf("Account: it has %d applications, which is as many as devices take entries of", maxApplications)}
	}
	var catalog []byte
	if g.Kind == device.KindSSH {
		g.Identifier, catalog, err = sshApplication(a, g.Keys)
	} else {
		g.Identifier = device.MailIdentifier(address)
		catalog, err = mailApplication(a, address, g.Keys)
	}
	if err != nil {
		return err
	}
	text, err := g.Marshal()
	if err != nil {
		return err
	}
	defer clear(text)
	sealed, err := r.sealFor(a.Account, text)
	if err != nil {
		return err
	}
	a.Applications = append(a.Applications, devicestate.Application{Kind: g.Kind, Identifier: g.Identifier, Catalog: catalog, Keys: sealed})
	return nil
}

// sshApplication makes the account's key for SSH. It authenticates, and is not escrowed.
func sshApplication(a *administered, keys map[string]*mesh.KeyData) (identifier string, catalog []byte, err error) {
	public, private, err := applicationKey(a.profile.Generation)
	if err != nil {
		return "", nil, err
	}
	keys["ClientKey"] = private
	entry, err := device.NewCatalogedApplicationSSH(public, a.Address, nil, a.profile.Generation)
	if err != nil {
		return "", nil, err
	}
	catalog, err = entry.Marshal(a.profile.Generation)
	return entry.Key, catalog, err
}

// mailApplication makes the keys of a mail address. Those for decryption are escrowed: without them
// stored mail is lost.
func mailApplication(a *administered, address string, keys map[string]*mesh.KeyData) (catalog []byte, err error) {
	entry := device.CatalogedApplicationMail{Address: address, Keys: map[string]token.PublicKey{}}
	for name, o := range device.MailKeys() {
		public, private, err := applicationKey(a.profile.Generation)
		if err != nil {
			return nil, err
		}
		entry.Keys[name], keys[name] = public, private
		if device.CheckEscrow(o) != nil || a.profile.Escrow == nil {
			continue
		}
		e, err := device.EscrowKey(rand.Reader, a.profile, o, private)
		if err != nil {
			return nil, err
		}
		entry.Escrow = append(entry.Escrow, e)
	}
	return entry.Marshal(a.profile.Generation)
}

// applicationKey makes an RSA key. The caller wipes it.
func applicationKey(g mesh.Generation) (token.PublicKey, *mesh.KeyData, error) {
	private, err := rsa.GenerateKey(rand.Reader, applicationBits)
	if err != nil {
		return token.PublicKey{}, nil, err
	}
	key := &token.PrivateKey{Algorithm: token.RSA2048, RSA: private}
	defer key.Wipe()
	public, err := mesh.PublicOf(key)
	if err != nil {
		return token.PublicKey{}, nil, err
	}
	data, err := mesh.NewPrivateKeyData(key, g)
	return public, data, err
}
