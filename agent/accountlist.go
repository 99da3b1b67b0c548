package agent

import (
	"cmp"
	"context"
	"slices"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// accountList answers AccountListRequest.
func (r *request) accountList(ctx context.Context, req mesh.AccountListRequest) (any, error) {
	if req.Device != "" {
		return r.accountDevice(req)
	}
	page := accountPage{after: req.After}
	if req.Account != "" {
		a, err := r.account(req.Account)
		if err != nil {
			return nil, err
		}
		err = page.addAccount(r.describeAccount(a.Account), a.Devices, a.Applications)
		return page.response(), err
	}
	all, err := r.config.Device.Accounts()
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		if err := page.addAccount(r.describeAccount(a), a.Devices, nil); err != nil {
			return nil, err
		}
	}
	return page.response(), nil
}

// accountDevice describes one device of an account.
func (r *request) accountDevice(req mesh.AccountListRequest) (any, error) {
	if req.After != "" {
		return nil, malformed("After", "not with Device")
	}
	a, d, err := r.connected(req.Account, req.Device)
	if err != nil {
		return nil, err
	}
	made := describeConnected(d)
	made.Encryption, made.Entry = d.Encryption, d.Entry
	info := r.describeAccount(a.Account)
	info.Devices = []mesh.AccountDevice{made}
	return mesh.AccountListResponse{Reply: accepted, Accounts: []mesh.AccountInfo{*info}}, nil
}

// accountPage collects of a list as much as a frame holds. What is listed has a place, a text by which all of the
// list is ordered, and a page begins after the place of the last one of the page before, which need not be there any more.
type accountPage struct {
	after    string
	accounts []mesh.AccountInfo
	size     int
	last     string // place
	full     bool
}

// The places of what an account has begin with its UDF, and go on with one of these.
const (
	placeDevice      = "/1/"
	placeApplication = "/2/"
)

// addAccount adds an account with what it has.
func (p *accountPage) addAccount(info *mesh.AccountInfo, devices []devicestate.Connected, applications []devicestate.Application) error {
	place := info.Udf
	if err := p.add(info, place, nil, func(*mesh.AccountInfo) {}); err != nil {
		return err
	}
	byUdf := slices.SortedFunc(slices.Values(devices), func(x, y devicestate.Connected) int { return cmp.Compare(x.Udf, y.Udf) })
	for i := range byUdf {
		made := describeConnected(&byUdf[i])
		if err := p.add(info, place+placeDevice+made.Udf, made, func(to *mesh.AccountInfo) { to.Devices = append(to.Devices, made) }); err != nil {
			return err
		}
	}
	byKey := slices.SortedFunc(slices.Values(applications), func(x, y devicestate.Application) int { return cmp.Compare(x.Identifier, y.Identifier) })
	for _, x := range byKey {
		if err := p.add(info, place+placeApplication+x.Identifier, x.Catalog, func(to *mesh.AccountInfo) { to.Applications = append(to.Applications, x.Catalog) }); err != nil {
			return err
		}
	}
	return nil
}

// add adds what is at a place to its account, with the account if this is the first of it on the page.
func (p *accountPage) add(info *mesh.AccountInfo, place string, item any, to func(*mesh.AccountInfo)) error {
	if p.full || place <= p.after {
		return nil
	}
	begun := len(p.accounts) > 0 && p.accounts[len(p.accounts)-1].Udf == info.Udf
	text, err := strictjson.Marshal(item)
	if err == nil && !begun {
		var head []byte
		head, err = strictjson.Marshal(info)
		text = append(text, head...)
	}
	if err != nil {
		return err
	}
	const rest = 1024 // tags, status, Next
	if p.full = p.last != "" && p.size+len(text) > maxReply-rest; p.full {
		return nil
	}
	if !begun {
		p.accounts = append(p.accounts, *info)
	}
	to(&p.accounts[len(p.accounts)-1])
	p.size, p.last = p.size+len(text)+len(`,`), place
	return nil
}

func (p *accountPage) response() mesh.AccountListResponse {
	out := mesh.AccountListResponse{Reply: accepted, Accounts: p.accounts}
	if p.full {
		out.Next = p.last
	}
	return out
}
