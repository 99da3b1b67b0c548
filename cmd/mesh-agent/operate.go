package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newOperateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "operate [FILE]",
		Short: "Send one Mesh message, print the answer",
		Long: `Sends one Mesh message, such as {"OperateRequest":{...}}, from FILE or standard input
to the agent as it is, and prints the answer.

The exit status is 0 if the agent understood the message (the answer's Status is 201),
even where single operations failed: their results say so.`,
		Example: `  echo '{"HelloRequest":{}}' | mesh-agent operate`,
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			request, err := a.read(optional(files), maxDocument)
			if err != nil {
				return err
			}
			defer clear(request) // it may hold a key or a PIN
			return a.with(c.Context(), func(conn *client.Client) error {
				response, err := conn.RawOperate(c.Context(), request)
				if err != nil {
					return err
				}
				if err := a.print(append(response, '\n')); err != nil {
					return err
				}
				return understood(response)
			})
		},
	}
}

// understood returns an error if a response's Status is not 201.
func understood(response []byte) error {
	var message mesh.Tagged
	if err := strictjson.Unmarshal(response, &message); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	var members map[string]strictjson.Value
	if err := message.Decode(&members); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	var status int
	if err := strictjson.Unmarshal(members["Status"], &status); err != nil {
		return fmt.Errorf("read the agent's answer: Status: %w", err)
	}
	if status == mesh.StatusOK {
		return nil
	}
	var description string
	if text, ok := members["StatusDescription"]; ok {
		if err := strictjson.Unmarshal(text, &description); err != nil {
			return fmt.Errorf("read the agent's answer: StatusDescription: %w", err)
		}
	}
	return &client.StatusError{Status: status, Text: description}
}
