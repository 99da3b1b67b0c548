package device

import (
	"context"
	"fmt"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// DeviceSpec is what goes into a device's profile.
type DeviceSpec struct {
	Generation                            mesh.Generation // G1 if zero
	Encryption, Signature, Authentication token.PublicKey
	Description                           string    // public; often empty
	Created                               time.Time // the time of day if zero; not signed
}

// NewProfileDevice makes a profile and has the root sign it, which it never does again.
func NewProfileDevice(ctx context.Context, root mesh.Signer, s DeviceSpec) (*ProfileDevice, error) {
	b := newBuilder(s.Generation, s.Created)
	w := wireProfile{
		Encryption: b.key(s.Encryption), Signature: b.key(s.Signature), Authentication: b.key(s.Authentication),
		Description: s.Description,
	}
	e, err := b.profile(ctx, TagProfileDevice, root, w)
	if err != nil {
		return nil, err
	}
	return ParseProfileDevice(e, b.created)
}

// AccountSpec is what goes into an account's profile.
type AccountSpec struct {
	Generation                            mesh.Generation // G1 if zero
	Address                               string
	ServiceUdf                            string // empty without a service
	Administrator                         token.PublicKey
	Encryption, Signature, Authentication token.PublicKey
	Escrow                                token.PublicKey
	Created                               time.Time // the time of day if zero; not signed
}

// NewAccountSpec derives the public keys of an account from its seed, with the default
// algorithms. Address and times are left to the caller.
func NewAccountSpec(seed *mesh.Seed, g mesh.Generation) (*AccountSpec, error) {
	s := &AccountSpec{Generation: g}
	for _, k := range []struct {
		o  Operation
		to *token.PublicKey
	}{
		{AdminSign, &s.Administrator}, {Encrypt, &s.Encryption}, {Sign, &s.Signature},
		{Authenticate, &s.Authentication}, {Escrow, &s.Escrow},
	} {
		key, err := AccountKey(seed, k.o, "", g)
		if err != nil {
			return nil, err
		}
		*k.to, err = mesh.PublicOf(key)
		key.Wipe()
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// NewProfileUser makes an account's profile and has the root sign it.
func NewProfileUser(ctx context.Context, root mesh.Signer, s AccountSpec) (*ProfileUser, error) {
	b := newBuilder(s.Generation, s.Created)
	w := wireProfile{
		AccountAddress: s.Address, ServiceUdf: s.ServiceUdf,
		AdministratorSignature: b.key(s.Administrator), CommonEncryption: b.key(s.Encryption),
		CommonSignature: b.key(s.Signature), CommonAuthentication: b.key(s.Authentication),
		EscrowEncryption: b.key(s.Escrow),
	}
	e, err := b.profile(ctx, TagProfileUser, root, w)
	if err != nil {
		return nil, err
	}
	return ParseProfileUser(e, b.created)
}

// builder writes objects of one generation and keeps the first error.
type builder struct {
	g       mesh.Generation
	created time.Time
	err     error
}

func newBuilder(g mesh.Generation, created time.Time) *builder {
	if g == 0 {
		g = mesh.G1
	}
	if created.IsZero() {
		created = time.Now()
	}
	return &builder{g: g, created: created.UTC().Truncate(time.Second)}
}

func (b *builder) key(pub token.PublicKey) *mesh.KeyData {
	k, err := mesh.NewKeyData(pub, b.g)
	if err != nil && b.err == nil {
		b.err = err
	}
	return k
}

func (b *builder) meta(id, tag string) mesh.ContentMeta {
	return mesh.ContentMeta{UniqueID: id, MessageType: tag, ContentType: mesh.ContentTypeObject, Created: b.created}
}

// profile adds the root to w, and signs.
func (b *builder) profile(ctx context.Context, tag string, root mesh.Signer, w wireProfile) (*mesh.Envelope, error) {
	p := Profile{}
	udf, err := mesh.FingerprintOctets(root.Public(), b.g)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", tag, err)
	}
	if p.UDF = udf; b.g == mesh.G1 {
		w.ProfileSignature = b.key(root.Public())
	} else {
		w.RootUdfs = []mesh.Binary{udf}
		p.UDF = rootsUDF(w.RootUdfs)
	}
	if b.err != nil {
		return nil, fmt.Errorf("make %s: %w", tag, b.err)
	}
	body, err := strictjson.Marshal(map[string]wireProfile{tag: w})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", tag, err)
	}
	e, err := mesh.NewEnvelope(ctx, body, mesh.EnvelopeOptions{
		Generation: b.g, ID: p.Name(), Meta: b.meta(p.Name(), tag),
		Signers: []mesh.Signer{root}, IncludeKey: b.g == mesh.G2,
	})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", tag, err)
	}
	return e, nil
}
