package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"k8s.io/client-go/util/exec"
)

const (
	// ahead is how many flows of a node are read before they are shown: then the node waits.
	ahead = 256
	// longestFlow bounds a line of a node's answer, in bytes.
	longestFlow = 1 << 20
	// patience is how long a flow waits for a node that says nothing, when flows are followed.
	patience = 2 * time.Second
)

// said is what a node said; err ends it, io.EOF when all is well.
type said struct {
	node     int
	response *observerpb.GetFlowsResponse
	err      error
}

// cluster asks the observers of all nodes, and shows what they say in order of time.
func (o *observation) cluster(ctx context.Context, c *cluster, q *observerpb.GetFlowsRequest) error {
	agents, err := c.agents(ctx, o.app.timeout)
	if err != nil {
		return unreachable(err)
	}
	if o.app.node != "" {
		i := slices.IndexFunc(agents, func(t target) bool { return t.node == o.app.node })
		if i < 0 {
			return unknown("node", o.app.node, "", names(agents))
		}
		agents = agents[i : i+1]
	}
	args, err := o.arguments(q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	words := make(chan said)
	r := &reception{observation: o, agents: agents, words: words, merger: merger{patience: patience, lanes: make([]lane, len(agents))}, q: q}
	if !o.follow {
		r.merger.patience = o.app.timeout
	}
	for i, t := range agents {
		room := make(chan struct{}, ahead)
		r.room = append(r.room, room)
		asking.Go(func() {
			err := o.listen(ctx, c, t, args, func(answer *observerpb.GetFlowsResponse) error {
				select {
				case room <- struct{}{}:
				case <-ctx.Done():
					return ctx.Err()
				}
				select {
				case words <- said{node: i, response: answer}:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			select {
			case words <- said{node: i, err: err}:
			case <-ctx.Done():
			}
		})
	}
	return r.show(ctx)
}

// listen runs the command on a node, and hands each of its lines to hear. It ends when the node says nothing for as long as the timeout.
func (o *observation) listen(ctx context.Context, c *cluster, t target, args []string, hear func(*observerpb.GetFlowsResponse) error) error {
	if t.err != nil {
		return t.err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := fmt.Errorf("no answer from %s in %v", t.pod, o.app.timeout)
	silence := time.AfterFunc(o.app.timeout, func() { cancel(silent) })
	defer silence.Stop()
	read, write := io.Pipe()
	var errout bytes.Buffer
	var execErr error
	var running sync.WaitGroup
	running.Go(func() {
		execErr = c.stream(ctx, t, append([]string{"strait"}, args...), write, &errout)
		_ = write.Close() // of a pipe: never fails
	})
	lines := bufio.NewScanner(read)
	lines.Buffer(nil, longestFlow)
	var err error
	for err == nil && lines.Scan() {
		silence.Reset(o.app.timeout)
		answer := &observerpb.GetFlowsResponse{}
		if err = json.Unmarshal(lines.Bytes(), answer); err != nil {
			err = fmt.Errorf("answer of %s is not what this version understands: %w", t.pod, err)
			continue
		}
		silence.Stop() // whoever shows it may take as long as he wants
		err = hear(answer)
		silence.Reset(o.app.timeout)
	}
	cancel(nil)
	_ = read.CloseWithError(io.ErrClosedPipe) // of a pipe: never fails
	running.Wait()
	switch {
	case errors.Is(context.Cause(ctx), silent):
		return silent
	case err != nil:
		return err
	case lines.Err() != nil && !errors.Is(lines.Err(), io.EOF):
		return fmt.Errorf("read answer of %s: %w", t.pod, lines.Err())
	case errout.Len() > 0:
		err = errors.New(strings.TrimPrefix(strings.TrimSpace(errout.String()), "strait: "))
		var code exec.CodeExitError
		if errors.As(execErr, &code) && code.Code == ExitUsage {
			return &exitError{ExitUsage, err}
		}
		return err
	case execErr != nil:
		return fmt.Errorf("ask %s: %w", t.pod, execErr)
	}
	return io.EOF
}

// reception is the showing of what nodes say.
type reception struct {
	*observation
	agents []target
	words  <-chan said
	room   []chan struct{} // by node: one token for each flow that waits
	merger merger
	q      *observerpb.GetFlowsRequest

	kept   []*observerpb.GetFlowsResponse // of the last N, those that may be among them
	shown  uint64                         // flows, or those in kept
	failed []answer[struct{}]
}

// errEnough ends the showing: there is as much as was asked for.
var errEnough = errors.New("enough")

func (r *reception) show(ctx context.Context) error {
	show := r.printer(len(r.agents) > 1)
	look := time.NewTicker(beat / 5)
	defer look.Stop()
	var err error
	for err == nil && (r.merger.open() || r.waits()) {
		select {
		case <-ctx.Done():
			err = ctx.Err()
			continue
		case <-look.C:
		case w := <-r.words:
			if err = r.hear(w); err != nil {
				continue
			}
		}
		err = r.pass(show)
	}
	if err != nil && !errors.Is(err, errEnough) && !errors.Is(err, context.Canceled) {
		return err
	}
	for _, answer := range r.kept {
		if err := show.add(answer); err != nil {
			return err
		}
	}
	if err := show.finish(); err != nil {
		return err
	}
	if len(r.failed) == len(r.agents) {
		return allFailed(r.failed)
	}
	if len(r.failed) > 0 {
		return &exitError{ExitProblems, nil}
	}
	return nil
}

func (r *reception) waits() bool {
	return slices.ContainsFunc(r.merger.lanes, func(l lane) bool { return len(l.queue) > 0 })
}

// hear notes what a node said, and names it when it has failed.
func (r *reception) hear(w said) error {
	if w.err == nil {
		r.merger.add(w.node, w.response, time.Now())
		if w.response.GetNodeStatus() != nil {
			<-r.room[w.node]
		}
		return nil
	}
	r.merger.lanes[w.node].done = true
	if errors.Is(w.err, io.EOF) && !r.follow {
		return nil
	}
	t := r.agents[w.node]
	if errors.Is(w.err, io.EOF) {
		w.err = errors.New("its agent has ended")
	}
	var exit *exitError
	if errors.As(w.err, &exit) {
		return exit // the same for every node
	}
	r.failed = append(r.failed, answer[struct{}]{Node: t.node, Err: w.err})
	_, _ = fmt.Fprintf(r.app.Err, "node %s does not answer: %v\n", t.node, w.err) // nobody left to tell
	return nil
}

// pass shows what may be shown now.
func (r *reception) pass(show *flowPrinter) error {
	for {
		answer, node, ok := r.merger.next(time.Now())
		if !ok {
			return nil
		}
		<-r.room[node]
		number := r.q.Number
		if answer.GetFlow() != nil {
			r.shown++
		}
		if number > 0 && !r.q.First && !r.follow && r.q.Since == nil {
			for r.kept = append(r.kept, answer); r.shown > number; r.kept = r.kept[1:] {
				if r.kept[0].GetFlow() != nil {
					r.shown--
				}
			}
			continue
		}
		if err := show.add(answer); err != nil {
			return err
		}
		if number > 0 && !r.follow && r.shown >= number {
			return errEnough
		}
	}
}
