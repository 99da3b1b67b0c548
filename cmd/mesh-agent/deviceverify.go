package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

func newDeviceVerifyCommand(a *app) *cobra.Command {
	var account, own string
	var unnamed bool
	c := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify a profile, request or connection; no agent is needed",
		Long: `Verifies, without any private key, an enveloped profile (ProfileDevice, ProfileUser,
ProfileService and so on), an enveloped RequestConnection, or a CatalogedDevice: signatures, names and how the parts fit
together. The exit status is 0 only if all is well; else the failed step is named.

A profile proves that it is its own: whose it is you know by its UDF, which --account
and --device compare; what names no account, or no device, does not pass with that flag. What only the device's private key shows, "device activate" verifies.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, files []string) error {
			data, err := a.readJSON(optional(files))
			if err != nil {
				return err
			}
			found, err := verifyObject(data, account, own, unnamed)
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(found)
			}
			rows := [][]string{{"good", found.Kind}, {"udf", found.Udf}, {"generation", found.Generation}}
			for _, row := range [][]string{{"account", found.Account}, {"address", found.Address}, {"roles", strings.Join(found.Roles, ", ")}} {
				if row[1] != "" {
					rows = append(rows, row)
				}
			}
			return a.printTable(rows)
		},
	}
	c.Flags().StringVar(&account, "account", "", "`UDF` that the account must have")
	c.Flags().StringVar(&own, "device", "", "`UDF` that the device must have")
	c.Flags().BoolVar(&unnamed, "allow-unnamed-account", false, "accept connections that name no account, as those before May 2022")
	return c
}

// verified is what a verification found, as --json prints it.
type verified struct {
	Kind       string
	Udf        string
	Generation string
	Account    string   `json:",omitzero"`
	Address    string   `json:",omitzero"`
	Roles      []string `json:",omitzero"`
}

// verifyObject verifies what is in a file.
func verifyObject(data strictjson.Value, account, own string, unnamed bool) (*verified, error) {
	if data.Kind() != '[' {
		return verifyCatalog(data, account, own, unnamed)
	}
	e, err := mesh.ParseEnvelope(data)
	if err != nil {
		return nil, err
	}
	if e.Header.Encryption != "" {
		return nil, hint(fmt.Errorf("the envelope is encrypted"), "mesh-agent device activate opens and verifies it")
	}
	tagged, err := mesh.DecodeBody(e.Body)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	switch tagged.Tag {
	case device.TagProfileUser, device.TagProfileGroup:
		p, err := device.ParseProfileUser(e, now)
		if err != nil {
			return nil, err
		}
		return profileFound(&p.Profile, p.Address, account, own)
	case device.TagProfileService:
		p, err := device.ParseProfileService(e, now)
		if err != nil {
			return nil, err
		}
		return profileFound(&p.Profile, "", "", cmp.Or(account, own))
	case device.TagRequestConnection:
		r, err := device.ParseRequestConnection(data, now)
		if err != nil {
			return nil, err
		}
		f, err := profileFound(&r.Profile.Profile, r.Account, own, account)
		if err == nil {
			f.Kind = tagged.Tag
		}
		return f, err
	}
	p, err := device.ParseProfileDevice(e, now)
	if err != nil {
		return nil, err
	}
	return profileFound(&p.Profile, "", own, account)
}

// profileFound compares a profile's name with the wanted one. A name wanted of what the profile does
// not speak of, absent, is not passed over.
func profileFound(p *device.Profile, address, want, absent string) (*verified, error) {
	if absent != "" {
		return nil, fmt.Errorf("%s: it is not about what %.64q names: %w", p.Tag, absent, device.ErrOtherName)
	}
	if want != "" && !p.Is(want) {
		return nil, fmt.Errorf("%s: its UDF is %s: %w", p.Tag, p.Name(), device.ErrOtherName)
	}
	return &verified{Kind: p.Tag, Udf: p.Name(), Generation: p.Generation.String(), Address: address}, nil
}

// verifyCatalog verifies a CatalogedDevice. Without a name to compare, the one inside is taken.
func verifyCatalog(data strictjson.Value, account, own string, unnamed bool) (*verified, error) {
	entry, err := device.ParseCatalogedDevice(data)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if account == "" {
		p, err := device.ParseProfileUser(entry.ProfileUser, now)
		if err != nil {
			return nil, &device.VerifyError{Step: device.StepAccount, Object: device.TagProfileUser, Err: err}
		}
		account = p.Name()
	}
	m, err := device.Verification{Account: account, Now: now, AllowNoProfileUdf: unnamed}.VerifyPublic(entry)
	if err != nil {
		return nil, err
	}
	if own != "" && !m.Device.Is(own) {
		return nil, &device.VerifyError{Step: device.StepDevice, Object: device.TagProfileDevice, Err: device.ErrOtherName}
	}
	return &verified{
		Kind: device.TagCatalogedDevice, Udf: m.Device.Name(), Generation: m.Device.Generation.String(),
		Account: m.Account.Name(), Address: m.Account.Address, Roles: m.Roles,
	}, nil
}
