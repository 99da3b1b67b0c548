package main

import (
	"context"
	"errors"
	"fmt"
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
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return hint(fmt.Errorf("no agent answers at %s", path),
			"start one with `mesh-agent serve`, or name its socket by --socket or $MESH_AGENT_SOCK")
	case err != nil:
		return err
	}
	defer conn.Close()
	defer a.sayTouch(ctx, path)()
	return do(conn)
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
