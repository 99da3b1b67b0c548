package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// with connects to the agent, does what do does with it, and hangs up.
func (a *app) with(ctx context.Context, do func(*client.Client) error) error {
	path, err := a.socketPath()
	if err != nil {
		return err
	}
	conn, err := client.Dial(ctx, path)
	if err != nil {
		return explainDial(path, err)
	}
	defer conn.Close()
	defer a.sayTouch(ctx, path)()
	err = do(conn)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return hint(fmt.Errorf("the agent at %s hung up", path), "it was stopped, did not start (journalctl --user -u mesh-agent), or is another user's, whom alone it serves")
	}
	return err
}

// explainDial says why nobody is at the other end of a path, and what to do.
func explainDial(path string, err error) error {
	switch {
	case len(path) > longestSocketPath:
		return errSocketPath(path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return hint(fmt.Errorf("no agent answers at %s", path),
			"start one with `mesh-agent serve`, or name its socket by --socket or $MESH_AGENT_SOCK")
	case errors.Is(err, fs.ErrPermission):
		return hint(fmt.Errorf("%s is not for this user", path), "an agent serves the user who runs it: start one of your own with `mesh-agent serve`")
	}
	return err
}

// asked connects to the agent for one request.
func asked[Request, Response any](ctx context.Context, a *app, call func(*client.Client, context.Context, Request) (Response, error), req Request) (response Response, err error) {
	err = a.with(ctx, func(conn *client.Client) error {
		response, err = call(conn, ctx, req)
		return err
	})
	return response, err
}

// keyInfo describes one key of the agent.
func (a *app) keyInfo(ctx context.Context, id string) (*mesh.KeyInfo, error) {
	return asked(ctx, a, (*client.Client).KeyShow, id)
}
