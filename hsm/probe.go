package hsm

import (
	"context"

	"github.com/mesh-agent/mesh-agent/token"
)

// probeLocked tries, once, with objects that live in a session only, whether the token honours the
// attributes that protect keys. What it cannot try, because the token has no such objects or
// mechanisms, it does not report.
func (t *Token) probeLocked(ctx context.Context, b *binding) {
	if t.probed {
		return
	}
	t.probed = true
	k, ok := b.kind(token.P256)
	if !ok || k.sign == 0 || !k.makes {
		return
	}
	report := func(text, mend string) {
		t.findings = append(t.findings, token.Finding{Severity: token.SeverityWarning, Text: text, Mend: mend})
	}
	if honoured, tried := t.probeAsks(ctx, b, k); tried && !honoured {
		report("the token ignores CKA_ALWAYS_AUTHENTICATE: a key in it cannot ask for the PIN each time",
			"keep keys that must ask in another token")
	}
	if honoured, tried := t.probeWrap(ctx, b, k); tried && !honoured {
		report("the token wraps keys with CKA_EXTRACTABLE false: whoever has the PIN can take private keys out",
			"treat its keys as keys in a file with a passphrase")
	}
}

// sessionPair makes a key pair that ends with its session.
func (t *Token) sessionPair(ctx context.Context, b *binding, k kind, extra ...attribute) (public, private uint64, err error) {
	r, err := t.module.call(ctx, b.child, &call{
		op: opGenerate, slot: b.info.slot, mech: mechanism{kind: k.generate},
		template:  []attribute{no(ckaToken), octets(ckaECParams, k.params)},
		template2: append([]attribute{no(ckaToken), yes(ckaPrivate), yes(ckaSensitive), no(ckaExtractable), yes(ckaSign)}, extra...),
	})
	if err == nil && len(r.numbers) != 2 {
		err = errFrame
	}
	if err != nil {
		return 0, 0, err
	}
	return r.numbers[0], r.numbers[1], nil
}

func (t *Token) probeAsks(ctx context.Context, b *binding, k kind) (honoured, tried bool) {
	public, private, err := t.sessionPair(ctx, b, k, yes(ckaAlwaysAuthenticate))
	if err != nil {
		return false, false
	}
	defer t.destroy(ctx, b, public, private)
	_, err = t.module.call(ctx, b.child, &call{
		op: opSign, slot: b.info.slot, object: private, mech: mechanism{kind: k.sign}, data: [][]byte{make([]byte, 32)},
	})
	return err != nil, true
}

func (t *Token) probeWrap(ctx context.Context, b *binding, k kind) (honoured, tried bool) {
	if !b.mechanisms.has(ckmAESKeyGen) || !b.mechanisms.has(ckmAESKeyWrapPad) {
		return false, false
	}
	public, private, err := t.sessionPair(ctx, b, k)
	if err != nil {
		return false, false
	}
	defer t.destroy(ctx, b, public, private)
	r, err := t.module.call(ctx, b.child, &call{
		op: opSecret, slot: b.info.slot, mech: mechanism{kind: ckmAESKeyGen},
		template: []attribute{no(ckaToken), number(ckaValueLen, 32), yes(ckaWrap)},
	})
	if err != nil || len(r.numbers) != 1 {
		return false, false
	}
	defer t.destroy(ctx, b, r.numbers[0])
	wrapped, err := t.module.call(ctx, b.child, &call{
		op: opWrap, slot: b.info.slot, object: private, other: r.numbers[0], mech: mechanism{kind: ckmAESKeyWrapPad},
	})
	if err == nil {
		wrapped.wipe()
	}
	return err != nil, true
}
