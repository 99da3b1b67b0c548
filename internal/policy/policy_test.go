package policy

import (
	"slices"
	"testing"
)

var allOperations = []Operation{0, SSH, Sign, Agree, Decrypt, Unwrap, Share, SignEnvelope, Authenticate, Manage, Manage + 1}

// permitted is the table of uses as the protocol document has it, written a second time.
var permitted = map[string][]Operation{
	"":               {Manage},
	"ssh":            {SSH},
	"sign":           {Sign},
	"sign-assertion": {SignEnvelope},
	"sign-share":     nil,
	"decrypt":        {Decrypt, Unwrap},
	"agree":          {Agree, Decrypt, Unwrap},
	"authenticate":   {Authenticate},
	"split":          {Share},
	"seal":           {Unwrap},
	"Sign":           nil,
	"anything":       nil,
}

func TestOwner(t *testing.T) {
	t.Parallel()
	p := Owner(1000)
	for use, want := range permitted {
		for _, op := range allOperations {
			got := p.Decide(Peer{UID: 1000}, use, op)
			switch {
			case slices.Contains(want, op):
				if got != (Verdict{Effect: Allow}) {
					t.Errorf("use %q, %v: %+v, want Allow", use, op, got)
				}
			case got.Effect != Deny || got.Rule != "use" || got.Why == "":
				t.Errorf("use %q, %v: %+v, want a refusal by use", use, op, got)
			}
		}
	}
}

func TestOthersAreDenied(t *testing.T) {
	t.Parallel()
	policies := map[string]struct {
		policy Policy
		peer   Peer
	}{
		"another user":         {Owner(1000), Peer{UID: 1001}},
		"root":                 {Owner(1000), Peer{UID: 0}},
		"no policy, root":      {Policy{}, Peer{UID: 0}},
		"no policy, a user":    {Policy{}, Peer{UID: 1000}},
		"root's agent, a user": {Owner(0), Peer{UID: 1000}},
	}
	for name, c := range policies {
		for use := range permitted {
			for _, op := range allOperations {
				if got := c.policy.Decide(c.peer, use, op); got.Effect != Deny || got.Rule != "policy" {
					t.Errorf("%s, use %q, %v: %+v", name, use, op, got)
				}
			}
		}
	}
}

func TestZeroVerdictDenies(t *testing.T) {
	t.Parallel()
	if (Verdict{}).Effect != Deny {
		t.Error("the zero verdict does not deny")
	}
}
