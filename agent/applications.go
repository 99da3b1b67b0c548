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
// by the connection before.
func (r *request) installApplications(ctx context.Context, m *maker, a activation, label string) (refused []string, err error) {
	if len(a.member.Applications) > maxApplications {
		return nil, malformed("Catalog", "more than %d applications", maxApplications)
	}
	known, err := catalogKeys(a.req.Applications)
	if err != nil {
		return nil, err
	}
	for i := range a.member.Applications {
		entry := &a.member.Applications[i]
		title := fmt.Sprintf("%s %.64s", entry.Tag, entry.Identifier)
		opened, err := entry.Open(ctx, a.member.Combined, a.member.Account.Generation)
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", title, err))
			continue
		}
		notes, err := r.installApplication(ctx, m, opened, title, func(pub token.PublicKey) bool {
			return slices.ContainsFunc(known, pub.Equal) || r.hadApplication(a.old, pub) || slices.ContainsFunc(a.req.Accept, func(name string) bool {
				return mesh.Names(name, pub, mesh.G1) || mesh.Names(name, pub, mesh.G2)
			})
		}, applicationLabel(entry, label))
		opened.Wipe()
		if err != nil {
			return nil, err
		}
		refused = append(refused, notes...)
	}
	return refused, nil
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

func (r *request) installApplication(ctx context.Context, m *maker, a *device.ApplicationActivation, title string, confirmed func(token.PublicKey) bool, label string) (refused []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(a.Keys)) {
		k := a.Keys[name]
		private, err := k.PrivateParameters.PrivateKey()
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %s: %v", title, name, err))
			continue
		}
		public, err := mesh.PublicOf(private)
		private.Wipe()
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %s: %v", title, name, err))
			continue
		}
		if !confirmed(public) {
			udf, err := mesh.Fingerprint(public, mesh.G1)
			if err != nil {
				return nil, err
			}
			refused = append(refused, fmt.Sprintf("%s: %s %s: nobody signed it; it is taken with the catalog's entry or if its UDF is accepted", title, name, udf))
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

// catalogKeys are the public keys in entries of a catalog of applications: tagged objects whose
// members are public KeyData under the names of applicationUses.
func catalogKeys(entries []strictjson.Value) ([]token.PublicKey, error) {
	const member = "Applications"
	if len(entries) > maxApplications {
		return nil, malformed(member, "more than %d", maxApplications)
	}
	var out []token.PublicKey
	for _, text := range entries {
		tag, body, err := cutTagged(text)
		if err != nil {
			return nil, malformed(member, "tagged objects such as CatalogedApplicationSsh expected")
		}
		var members map[string]strictjson.Value
		if err := strictjson.Unmarshal(body, &members); err != nil {
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
			out = append(out, pub)
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
