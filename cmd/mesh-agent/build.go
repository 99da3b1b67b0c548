package main

import (
	"runtime/debug"
	"strings"
)

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
