package config

import (
	"errors"
	"fmt"
	"slices"
)

// checkPIV wants serial numbers, each once.
func checkPIV(serials []uint32) error {
	for i, serial := range serials {
		switch {
		case serial == 0:
			return errors.New("piv: 0 is not a serial number")
		case slices.Contains(serials[:i], serial):
			return fmt.Errorf("piv: %d is there twice", serial)
		}
	}
	return nil
}
