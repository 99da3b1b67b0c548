package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// diagnoseTimeout is how long one token may be looked at.
const diagnoseTimeout = 30 * time.Second

// doctor answers DoctorRequest: what the agent can see of its tokens and keys.
func (r *request) doctor(ctx context.Context, body strictjson.Value) ([]byte, error) {
	if err := r.decodeManage(mesh.TagDoctorRequest, body, &mesh.DoctorRequest{}); err != nil {
		return nil, err
	}
	out := mesh.DoctorResponse{Reply: accepted}
	for _, t := range r.ring.Tokens() {
		out.Findings = append(out.Findings, r.diagnose(ctx, t)...)
	}
	out.Findings = append(out.Findings, r.rollbackFindings(ctx)...)
	out.Findings = append(out.Findings, r.keyFindings()...)
	out.Findings = append(out.Findings, r.deviceFindings()...)
	out.Findings = append(out.Findings, r.promptFindings(ctx)...)
	if more := len(out.Findings) - maxListed; more > 0 {
		out.Findings = append(out.Findings[:maxListed], mesh.Finding{Severity: string(token.SeverityError), About: "agent",
			Text: fmt.Sprintf("%d more findings", more), Mend: "mend those first"})
	}
	return strictjson.Marshal(out)
}

// diagnose has a token say what is wrong with it, or says what its state tells.
func (r *request) diagnose(ctx context.Context, t token.Token) []mesh.Finding {
	info := t.Info()
	about := "token " + info.Name
	findings := []token.Finding{stateFinding(info)}
	if d, ok := t.(token.Doctor); ok {
		ctx, cancel := context.WithTimeout(ctx, diagnoseTimeout)
		defer cancel()
		leave, err := r.manageGate(ctx, info.Name)
		if err != nil {
			return []mesh.Finding{{Severity: string(token.SeverityError), About: about,
				Text: "it is busy and could not be looked at: " + r.answerTo(err).text, Mend: "try again in a moment"}}
		}
		defer leave()
		if own := d.Diagnose(ctx); len(own) != 0 {
			findings = own
		}
	}
	out := make([]mesh.Finding, len(findings))
	for i, f := range findings {
		out[i] = mesh.Finding{Severity: string(f.Severity), About: about, Text: f.Text, Mend: f.Mend}
	}
	return out
}

// stateFinding is what the state of a token alone tells.
func stateFinding(info token.Info) token.Finding {
	switch info.State {
	case token.StateReady:
		return token.Finding{Severity: token.SeverityInfo, Text: "ready: " + info.Description}
	case token.StateLocked:
		return token.Finding{Severity: token.SeverityInfo, Text: "locked: `mesh-agent token unlock " + info.Name + "` presents its PIN"}
	case token.StateTouch:
		return token.Finding{Severity: token.SeverityInfo, Text: "waiting for touch: an operation goes on when somebody touches it"}
	case token.StateReplaced:
		return token.Finding{Severity: token.SeverityError, Text: "replaced: another device, or a cleared one, is in its place",
			Mend: "put the right one back; keys of the earlier one are lost without it"}
	}
	return token.Finding{Severity: token.SeverityError, Text: "absent: it is not there or does not answer",
		Mend: "plug it in, and check that this user may open its device"}
}

// rollbackFindings says whether the key records are the last ones, if that is guarded.
func (r *request) rollbackFindings(ctx context.Context) []mesh.Finding {
	err := r.ring.CheckRollback(ctx, r.manageGate)
	if err == nil {
		return nil
	}
	f := mesh.Finding{Severity: string(token.SeverityError), About: "keys", Text: r.answerTo(err).text,
		Mend: "no key is used until the rollback guard answers: see what is wrong with its token"}
	if errors.Is(err, keyring.ErrRollback) {
		f.Mend = rollbackMend
	}
	return []mesh.Finding{f}
}

const rollbackMend = "put the last state folder back; or if you restored this one knowingly: mesh-agent store accept-rollback"

// acceptRollback answers AcceptRollbackRequest.
func (r *request) acceptRollback(ctx context.Context, body strictjson.Value) ([]byte, error) {
	if err := r.decodeManage(mesh.TagAcceptRollbackRequest, body, &mesh.AcceptRollbackRequest{}); err != nil {
		return nil, err
	}
	if err := r.ring.AcceptRollback(ctx, r.manageGate); err != nil {
		return nil, err
	}
	r.log.Warn("key records accepted as they are, although they are not the last ones")
	return strictjson.Marshal(accepted)
}

// deviceFindings says which record of the device or of an account cannot be read.
func (r *request) deviceFindings() (out []mesh.Finding) {
	if r.config.Device == nil {
		return nil
	}
	_, noDevice := r.identity()
	_, noAccounts := r.config.Device.Accounts()
	for _, err := range []error{noDevice, noAccounts} {
		var record *devicestate.RecordError
		if errors.As(err, &record) {
			out = append(out, mesh.Finding{Severity: string(token.SeverityError), About: "device", Text: record.Error(), Mend: recordMend})
		}
	}
	return out
}

// keyFindings says which records did not load and which keys did not open.
func (r *request) keyFindings() []mesh.Finding {
	snapshot := r.ring.Snapshot()
	var out []mesh.Finding
	for _, problem := range snapshot.Problems() {
		out = append(out, mesh.Finding{Severity: string(token.SeverityError), About: "keys", Text: problem,
			Mend: "restore the record from a backup, or move it away; the other keys are not affected"})
	}
	for _, e := range snapshot.Entries() {
		if !strings.HasPrefix(e.State, "unreadable") {
			continue
		}
		f := mesh.Finding{Severity: string(token.SeverityError), About: "key " + e.Udf, Text: e.State,
			Mend: "restore its record and its token, or delete it: mesh-agent key delete " + e.Udf}
		if e.PCRs != "" {
			f.Mend = "seal it to the platform as it is now: mesh-agent key reseal --recovery - " + e.Udf
		}
		out = append(out, f)
	}
	return out
}
