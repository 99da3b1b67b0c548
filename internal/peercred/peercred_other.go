//go:build !linux

package peercred

import "errors"

func ofDescriptor(int) (Credentials, error) { return Credentials{}, errors.ErrUnsupported }
