package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// applicationUses are those of the keys in activations of applications, by their members.
var applicationUses = map[string]token.Use{
	"ClientKey": token.UseSSH,
	"SmimeSign": token.UseSign, "OpenpgpSign": token.UseSign,
	"SmimeEncrypt": token.UseDecrypt, "OpenpgpEncrypt": token.UseDecrypt,
	"AccountEncryption": token.UseDecrypt, "AccountAuthentication": token.UseAuthenticate,
	"AdministratorSignature": token.UseSignAssertion,
}

// installApplications takes in keys of applications. Nobody signs their activations, so that
// whoever can write to the device could plant one: only keys are taken whose public part the
// account's catalog of applications has, or that a person accepted by its UDF, or that the device has
// by the connection before. Where the catalog says to which roles an application is granted, the device has one of them.
func (r *request) installApplications(ctx context.Context, m *maker, a activation, label string) (refused []string, err error) {
	if len(a.member.Applications) > maxApplications {
		return nil, malformed("Catalog", "more than %d applications", maxApplications)
	}
	known, err := catalogKeys(a.req.Applications)
	if err != nil {
		return nil, err
	}
	refusal := func(pub token.PublicKey) string { return r.refuseApplication(a, known, pub) }
	for i := range a.member.Applications {
		entry := &a.member.Applications[i]
		title := fmt.Sprintf("%s %.64s", entry.Tag, entry.Identifier)
		opened, err := entry.Open(ctx, a.member.Combined, a.member.Account.Generation)
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", title, err))
			continue
		}
		notes, err := r.installApplication(ctx, m, opened, title, refusal, applicationLabel(entry, label))
		opened.Wipe()
		if err != nil {
			return nil, err
		}
		refused = append(refused, notes...)
	}
	return refused, nil
}

// refuseApplication says why a key of an application is not taken; empty if it is.
func (r *request) refuseApplication(a activation, known []cataloguedKey, pub token.PublicKey) string {
	if slices.ContainsFunc(a.req.Accept, func(name string) bool { return mesh.Names(name, pub, mesh.G1) || mesh.Names(name, pub, mesh.G2) }) {
		return ""
	}
	i := slices.IndexFunc(known, func(k cataloguedKey) bool { return pub.Equal(k.public) })
	switch {
	case i >= 0 && !known[i].grantedTo(a.member.Roles):
		return "the catalog does not grant it to the roles of this device"
	case i < 0 && !r.hadApplication(a.old, pub):
		return "nobody signed it; it is taken with the catalog's entry or if its UDF is accepted"
	}
	return ""
}

// applicationLabel is what the keys of an application are labelled with: their mail address, so that those of two
// addresses are told apart, else the account.
func applicationLabel(entry *device.ApplicationEntry, account string) string {
	if address, ok := strings.CutPrefix(entry.Identifier, device.MailIdentifier("")); ok && checkAddress(address) == nil && len(address) <= maxLabel/2 {
		return address
	}
	return account
}

// hadApplication reports whether a key of an application was taken in with the connection before.
func (r *request) hadApplication(old *devicestate.Membership, pub token.PublicKey) bool {
	held, err := r.ring.Snapshot().FindPublic(pub)
	return err == nil && old != nil && slices.ContainsFunc(old.Keys, func(k devicestate.Key) bool {
		_, application := applicationUses[k.Name]
		return application && k.Udf == held.Udf
	})
}

func (r *request) installApplication(ctx context.Context, m *maker, a *device.ApplicationActivation, title string, refusal func(token.PublicKey) string, label string) (refused []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(a.Keys)) {
		k := a.Keys[name]
		public, err := publicPart(k)
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %s: %v", title, name, err))
			continue
		}
		if why := refusal(public); why != "" {
			udf, err := mesh.Fingerprint(public, mesh.G1)
			if err != nil {
				return nil, err
			}
			refused = append(refused, fmt.Sprintf("%s: %s %s: %s", title, name, udf, why))
			continue
		}
		notes, err := r.takeKey(ctx, m, wish{name: name, label: label + " " + name, use: applicationUses[name], tags: nil}, k)
		if err != nil {
			return nil, err
		}
		refused = append(refused, notes...)
	}
	return refused, nil
}

// publicPart is the public key by which a private one of an activation is confirmed. Of a share, such as members of a group
// have, it is the share's own: what it says about the whole key is a claim.
func publicPart(k *mesh.KeyData) (token.PublicKey, error) {
	p := k.PrivateParameters
	if s := p.KeyShare; s != nil && s.Share != nil {
		p = s.Share
	} else if k.PublicParameters != nil && p.PrivateKeyRSA != nil {
		return k.PublicKey() // ParseApplicationActivation found it to fit, which takes long for RSA keys
	}
	private, err := p.PrivateKey()
	if err != nil {
		return token.PublicKey{}, err
	}
	defer private.Wipe()
	return mesh.PublicOf(private)
}

// cataloguedKey is a public key in an entry of a catalog of applications, which may say to which roles it is granted.
type cataloguedKey struct {
	public token.PublicKey
	roles
}

type roles struct {
	Grant, Deny []string         `json:",omitzero"`
	Other       strictjson.Value `json:",embed"`
}

// grantedTo reports whether a device of some roles may have the key: one of them is granted, if any is named, and none is
// denied. Roles are those of the connection, which the administrator signed.
func (g roles) grantedTo(device []string) bool {
	has := func(role string) bool { return slices.Contains(device, role) }
	return (len(g.Grant) == 0 || slices.ContainsFunc(g.Grant, has)) && !slices.ContainsFunc(g.Deny, has)
}

// catalogKeys are the public keys in entries of a catalog of applications: tagged objects whose
// members are public KeyData under the names of applicationUses.
func catalogKeys(entries []strictjson.Value) ([]cataloguedKey, error) {
	const member = "Applications"
	if len(entries) > maxApplications {
		return nil, malformed(member, "more than %d", maxApplications)
	}
	var out []cataloguedKey
	for _, text := range entries {
		tag, body, err := cutTagged(text)
		if err != nil {
			return nil, malformed(member, "tagged objects such as CatalogedApplicationSsh expected")
		}
		var members map[string]strictjson.Value
		if err := strictjson.Unmarshal(body, &members); err != nil {
			return nil, memberError(member, err)
		}
		var granted roles
		if err := strictjson.Unmarshal(body, &granted); err != nil {
			return nil, memberError(member, err)
		}
		for name := range applicationUses {
			text, ok := members[name]
			if !ok {
				continue
			}
			pub, err := publicOf(text)
			if err != nil {
				return nil, malformed(member, "%.64q: %s: %v", tag, name, err)
			}
			out = append(out, cataloguedKey{pub, granted})
		}
	}
	return out, nil
}

// publicOf reads a public KeyData.
func publicOf(text strictjson.Value) (token.PublicKey, error) {
	k, err := mesh.ParseKeyData(text)
	if err != nil {
		return token.PublicKey{}, err
	}
	if k.PrivateParameters != nil {
		k.PrivateParameters.Wipe()
		return token.PublicKey{}, fmt.Errorf("a private key: %w", token.ErrBadKey)
	}
	if err := k.CheckValidity(time.Now()); err != nil {
		return token.PublicKey{}, err
	}
	return k.PublicKey()
}
