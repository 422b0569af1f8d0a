package cli

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// explainPartVerb asks one node for its part of a path; other strait commands run it there.
const explainPartVerb = "explain-part"

// explainPartCmd is for programs: the question is JSON, and so is the answer.
func (a *app) explainPartCmd() *cobra.Command {
	return &cobra.Command{
		Use:    explainPartVerb + " QUESTION",
		Short:  "A node's part of a packet's path, asked and answered in JSON",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := localapi.ReadExplainQuestion(strings.NewReader(args[0]))
			if err != nil {
				return usage("%w", err)
			}
			all, err := ask(cmd.Context(), a, explainPart(q, args[0]))
			if err != nil {
				return err
			}
			return printForPrograms(a, all)
		},
	}
}

// printForPrograms prints the answer of one node as JSON where nothing else was asked for.
func printForPrograms[T any](a *app, all answers[T]) error {
	if !all.one || !a.output.forPeople() {
		return printAnswers(a, all)
	}
	text, err := json.MarshalIndent(all.nodes[0].Value, "", "  ")
	if err != nil {
		return err
	}
	return a.write(string(text) + "\n")
}

// explainPart is the question for a node's agent; text is q as it goes over a command line.
func explainPart(q localapi.ExplainQuestion, text string) question[localapi.ExplainPart] {
	return question[localapi.ExplainPart]{
		args:  []string{explainPartVerb, text},
		local: func(ctx context.Context, c *localapi.Client) (localapi.ExplainPart, error) { return c.Explain(ctx, q) },
	}
}
