package main

import (
	"runtime/debug"
	"strings"

	"github.com/mesh-agent/mesh-agent/hsm"
)

// features lists what not every binary has.
func features() []string {
	if hsm.Supported {
		return []string{"pkcs11"}
	}
	return nil
}

// version is what --version prints.
func version() string {
	if hsm.Supported {
		return build() + ", with PKCS#11"
	}
	return build() + ", static, without PKCS#11"
}

// build names the program's version and, if it was built in a repository, its commit.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := strings.Trim(info.Main.Version, "()")
	if version == "" {
		version = "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && version == "devel" && len(s.Value) >= 12 {
			version += "-" + s.Value[:12]
		}
	}
	return version
}
