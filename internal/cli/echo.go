package cli

import (
	"cmp"
	"context"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/echo"
)

// echoCmds are the verbs that run in pods of tests: a server and who asks it. They need no agent.
func (a *app) echoCmds() []*cobra.Command {
	var s echo.Server
	serve := &cobra.Command{
		Use: "echo", Hidden: true, Args: exactArgs(),
		Short: "Answer HTTP and UDP with who asked and where this runs, until ended",
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, _ := os.Hostname() // without one the server is just not named
			s.Pod, s.Node = cmp.Or(a.Getenv("POD_NAME"), host, "unnamed"), a.Getenv("NODE_NAME")
			return s.Serve(cmd.Context())
		},
	}
	serve.Flags().Uint16Var(&s.HTTP, "http-port", 8080, "port for HTTP; 0: none")
	serve.Flags().Uint16Var(&s.UDP, "udp-port", 8081, "port for UDP; 0: none")
	serve.Flags().StringVar(&s.Say, "say", "", "answer HTTP with this text")

	method := ""
	question := &cobra.Command{
		Use: "ask URL...", Hidden: true,
		Short: "Ask every address of http://, https:// or udp:// URLs, and say what each answers",
		RunE: func(cmd *cobra.Command, urls []string) error {
			if len(urls) == 0 {
				return usage("%s: URL is missing; see %s --help", cmd.CommandPath(), cmd.CommandPath())
			}
			return a.askURLs(cmd.Context(), method, urls)
		},
	}
	question.Flags().StringVarP(&method, "request", "X", "", "method of HTTP")
	return []*cobra.Command{serve, question}
}

// askURLs asks all at once: what does not answer takes the whole timeout.
func (a *app) askURLs(ctx context.Context, method string, urls []string) error {
	type outcome struct {
		answers []echo.Answer
		err     error
	}
	outcomes := make([]chan outcome, len(urls))
	for i, url := range urls {
		outcomes[i] = make(chan outcome, 1)
		go func() {
			answers, err := echo.Ask(ctx, echo.Question{URL: url, Method: method, Timeout: a.timeout})
			outcomes[i] <- outcome{answers, err}
		}()
	}
	var all []echo.Answer
	for _, c := range outcomes {
		o := <-c
		if o.err != nil {
			return usage("%w", o.err)
		}
		all = append(all, o.answers...)
	}
	var err error
	if a.output.forPeople() {
		text := ""
		for _, one := range all {
			text += one.String() + "\n"
		}
		err = a.write(text)
	} else {
		err = a.print(all)
	}
	if err == nil && slices.ContainsFunc(all, func(one echo.Answer) bool { return !one.OK() }) {
		return &exitError{ExitProblems, nil}
	}
	return err
}
