package main

import (
	"errors"
	"path/filepath"
)

// socketPath is where the agent listens and is looked for. Never at $SSH_AUTH_SOCK, which
// may be a forwarded agent of somebody else.
func (a *app) socketPath() (string, error) {
	if a.socket != "" {
		return a.socket, nil
	}
	if path := a.getenv("MESH_AGENT_SOCK"); path != "" {
		return path, nil
	}
	dir := a.getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		return "", hint(errors.New("$XDG_RUNTIME_DIR does not name a folder"), "name the agent's socket by --socket or $MESH_AGENT_SOCK")
	}
	return filepath.Join(dir, "mesh-agent", "agent.sock"), nil
}

// defaultState is the folder of the key records.
func (a *app) defaultState() (string, error) { return a.xdg("XDG_STATE_HOME", ".local/state") }

// defaultConfig is the configuration file.
func (a *app) defaultConfig() (string, error) {
	dir, err := a.xdg("XDG_CONFIG_HOME", ".config")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "config.toml"), nil
}

// xdg returns the agent's folder in a base folder of the XDG Base Directory
// Specification: that of the variable, else one below the home folder.
func (a *app) xdg(variable, below string) (string, error) {
	if dir := a.getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "mesh-agent"), nil
	}
	home := a.getenv("HOME")
	if !filepath.IsAbs(home) {
		return "", hint(errors.New("neither $"+variable+" nor $HOME names a folder"), "name it by --state and --config")
	}
	return filepath.Join(home, below, "mesh-agent"), nil
}
