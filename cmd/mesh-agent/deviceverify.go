package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

func newDeviceVerifyCommand(a *app) *cobra.Command {
	var v verifier
	var pin string
	c := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify a profile, request or connection; no agent is needed",
		Long: `Verifies, without any private key, an enveloped profile (ProfileDevice, ProfileUser,
ProfileService and so on), a RequestConnection, a ConnectResponse, or a CatalogedDevice, alone or as a frame of a
catalog: signatures, names and how the parts fit together. The exit status is 0 only if all is well; else the
failed step is named.

A profile proves that it is its own: whose it is you know by its UDF, which --account
and --device compare; what names no account, or no device, does not pass with that flag. A request is nobody's until
it proves a PIN, which --pin checks. Of a ConnectResponse the witness is shown, which both sides
compare. What only the device's private key shows, "device activate" verifies.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			data, err := a.readJSON(optional(files))
			if err != nil {
				return err
			}
			if pin != "" {
				if v.pin, err = a.readLine(c.Context(), pin, "PIN"); err != nil {
					return err
				}
				defer clear(v.pin)
			}
			found, err := v.verify(data)
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(found)
			}
			rows := [][]string{{"good", found.Kind}, {"udf", found.Udf}, {"generation", found.Generation}}
			for _, row := range [][]string{
				{"account", found.Account}, {"address", found.Address}, {"roles", strings.Join(found.Roles, ", ")}, {"witness", found.Witness},
			} {
				if row[1] != "" {
					rows = append(rows, row)
				}
			}
			return a.printTable(rows)
		},
	}
	c.Flags().StringVar(&v.account, "account", "", "`UDF` that the account must have")
	c.Flags().StringVar(&v.own, "device", "", "`UDF` that the device must have")
	c.Flags().BoolVar(&v.unnamed, "allow-unnamed-account", false, "accept connections that name no account, as those before May 2022")
	c.Flags().StringVar(&pin, "pin", "", "`file` with the PIN that a request must prove")
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
	Witness    string   `json:",omitzero"`
}

// verifier says against what an object is verified.
type verifier struct {
	account, own string // UDFs, or nothing
	unnamed      bool
	pin          []byte
}

var errNoPIN = errors.New("it proves no PIN: only a request does")

// verify verifies what is in a file.
func (v verifier) verify(data strictjson.Value) (*verified, error) {
	tag := device.TagCatalogedDevice
	var e *mesh.Envelope
	if data.Kind() == '[' {
		var err error
		if e, err = mesh.ParseEnvelope(data); err != nil {
			return nil, err
		}
		if e.Header.Encryption != "" {
			return nil, hint(fmt.Errorf("the envelope is encrypted"), "mesh-agent device activate opens and verifies it")
		}
		tagged, err := mesh.DecodeBody(e.Body)
		if err != nil {
			return nil, err
		}
		tag = tagged.Tag
	} else if tagged, err := mesh.DecodeBody(data); err == nil {
		tag = tagged.Tag
	}
	if v.pin != nil && tag != device.TagRequestConnection {
		return nil, errNoPIN
	}
	switch tag {
	case device.TagRequestConnection:
		return v.request(data)
	case device.TagConnectResponse:
		return v.response(data)
	case device.TagCatalogedDevice:
		if e != nil {
			return v.frame(e)
		}
	}
	if e == nil {
		return v.catalog(device.ParseCatalogedDevice(data))
	}
	return v.profile(e, tag)
}

func (v verifier) profile(e *mesh.Envelope, tag string) (*verified, error) {
	now := time.Now()
	switch tag {
	case device.TagProfileUser, device.TagProfileGroup:
		p, err := device.ParseProfileUser(e, now)
		if err != nil {
			return nil, err
		}
		return profileFound(&p.Profile, p.Address, v.account, v.own)
	case device.TagProfileService:
		p, err := device.ParseProfileService(e, now)
		if err != nil {
			return nil, err
		}
		return profileFound(&p.Profile, "", "", cmp.Or(v.account, v.own))
	}
	p, err := device.ParseProfileDevice(e, now)
	if err != nil {
		return nil, err
	}
	return profileFound(&p.Profile, "", v.own, v.account)
}

func (v verifier) request(data strictjson.Value) (*verified, error) {
	r, err := device.ParseRequestConnection(data, time.Now())
	if err != nil {
		return nil, err
	}
	if v.pin != nil {
		if err := r.CheckPIN(string(v.pin), r.Account); err != nil {
			return nil, err
		}
	}
	found, err := profileFound(&r.Profile.Profile, r.Account, v.own, v.account)
	if err == nil {
		found.Kind = device.TagRequestConnection
	}
	return found, err
}

func (v verifier) response(data strictjson.Value) (*verified, error) {
	c, err := device.ParseConnectResponse(data, time.Now())
	if err != nil {
		return nil, err
	}
	found, err := profileFound(&c.Acknowledged.Request.Profile.Profile, c.Account.Address, v.own, "")
	if err != nil {
		return nil, err
	}
	if v.account != "" && !c.Account.Is(v.account) {
		return nil, fmt.Errorf("%s: its UDF is %s: %w", c.Account.Tag, c.Account.Name(), device.ErrOtherName)
	}
	found.Kind, found.Account, found.Witness = device.TagConnectResponse, c.Account.Name(), c.Acknowledged.Witness
	return found, nil
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

// frame verifies a CatalogedDevice in an envelope, which may be a frame of a catalog.
func (v verifier) frame(e *mesh.Envelope) (*verified, error) {
	if _, err := e.Manifest(mesh.G1); err != nil {
		return nil, err
	}
	if e.Header.SequenceInfo != nil {
		if _, err := device.FrameOf(e); err != nil {
			return nil, err
		}
	}
	return v.catalog(device.CatalogedDeviceBody(e.Body))
}

// catalog verifies a CatalogedDevice. Without a name to compare, the one inside is taken.
func (v verifier) catalog(entry *device.CatalogedDevice, err error) (*verified, error) {
	if err != nil {
		return nil, err
	}
	now := time.Now()
	account := v.account
	if account == "" {
		p, err := device.ParseProfileUser(entry.ProfileUser, now)
		if err != nil {
			return nil, &device.VerifyError{Step: device.StepAccount, Object: device.TagProfileUser, Err: err}
		}
		account = p.Name()
	}
	m, err := device.Verification{Account: account, Now: now, AllowNoProfileUdf: v.unnamed}.VerifyPublic(entry)
	if err != nil {
		return nil, err
	}
	if v.own != "" && !m.Device.Is(v.own) {
		return nil, &device.VerifyError{Step: device.StepDevice, Object: device.TagProfileDevice, Err: device.ErrOtherName}
	}
	return &verified{
		Kind: device.TagCatalogedDevice, Udf: m.Device.Name(), Generation: m.Device.Generation.String(),
		Account: m.Account.Name(), Address: m.Account.Address, Roles: m.Roles,
	}, nil
}
