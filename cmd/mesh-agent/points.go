package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// point is a curve point in the form in which files carry it, not checked.
type point = mesh.PublicKeyECDH

// parsePoint reads a point from JSON: what `agree` prints, an agreement result, a
// PublicKeyECDH or a public KeyData. The agent judges the point, not this function.
func parsePoint(data []byte) (point, error) {
	var message mesh.Tagged
	if err := strictjson.Unmarshal(data, &message); err != nil {
		p, err := parseKeyPoint(data) // a bare KeyData has several members
		if err != nil {
			return point{}, errors.New("neither a point nor a public key in JSON")
		}
		return p, nil
	}
	switch message.Tag {
	case "PublicKeyECDH":
		var p point
		err := message.Decode(&p)
		return p, err
	case "KeyAgreementECDH":
		var p mesh.KeyAgreementECDH
		err := message.Decode(&p)
		return point{Curve: p.Curve, Public: p.Result}, err
	case mesh.TagResultAgreement:
		var r mesh.ResultKeyAgreement
		err := message.Decode(&r)
		p := r.KeyAgreement.KeyAgreementECDH
		return point{Curve: p.Curve, Public: p.Result}, err
	}
	return parseKeyPoint(data)
}

func parseKeyPoint(data []byte) (point, error) {
	key, err := mesh.ParseKeyDataPublic(data)
	if err != nil {
		return point{}, err
	}
	p := mesh.Parameters(key).PublicKeyECDH
	if p == nil {
		return point{}, fmt.Errorf("a key of algorithm %s is no point", key.Algorithm)
	}
	return *p, nil
}

// readPoint is parsePoint of a file.
func (a *app) readPoint(name string) (point, error) {
	data, err := a.read(name, maxSmall)
	if err != nil {
		return point{}, err
	}
	p, err := parsePoint(data)
	if err != nil {
		return point{}, fmt.Errorf("read point %s: %w", name, err)
	}
	return p, nil
}

// checkPoint makes a point fit to compute with.
func checkPoint(p point) (*keyshare.Point, error) {
	curve, err := keyshare.ParseCurve(p.Curve)
	if err != nil {
		return nil, err
	}
	return keyshare.ParsePoint(curve, p.Public)
}

// combine adds points of one curve.
func combine(points []point) (*keyshare.Point, error) {
	var checked []*keyshare.Point
	for i, p := range points {
		if p.Curve != points[0].Curve {
			return nil, fmt.Errorf("combine points: point %d is on %s, the first on %s", i+1, p.Curve, points[0].Curve)
		}
		q, err := checkPoint(p)
		if err != nil {
			return nil, fmt.Errorf("combine points: point %d: %w", i+1, err)
		}
		checked = append(checked, q)
	}
	return keyshare.Combine(checked...)
}

// printPoint prints an agreement as the protocol has it.
func (a *app) printPoint(curve string, octets []byte) error {
	return a.printJSON(mesh.KeyAgreement{KeyAgreementECDH: mesh.KeyAgreementECDH{Curve: curve, Result: octets}})
}

// isEnvelope reports whether JSON is an array, as a DARE envelope is.
func isEnvelope(data []byte) bool {
	return strings.HasPrefix(strings.TrimSpace(string(data[:min(len(data), 64)])), "[")
}
