package cli

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/strait-net/strait/internal/capture"
)

// captureRun is a capture under way.
type captureRun struct {
	app   *app
	from  *informants
	plan  plan
	flags captureFlags
	show  *captureDisplay

	joiner *capture.Joiner
	failed []answer[struct{}]
	active int // parts that capture and have not ended
}

// partWord is what a part says; err ends it, io.EOF when all is well.
type partWord struct {
	part    int
	message capture.Message
	err     error
}

const (
	// wordsAhead is how many messages wait to be joined: then parts wait, and rings fill.
	wordsAhead = 4096
	// showEvery is how often what is ripe is shown.
	showEvery = 20 * time.Millisecond
)

func (r *captureRun) run(ctx context.Context) error {
	r.joiner = capture.NewJoiner(capture.Config{
		Nodes: r.plan.nodes, Names: r.plan.names, Every: r.flags.every, Hold: capture.Hold, Patience: capture.Patience, Limit: capture.Limit,
	})
	// A part in this process ends in order when it is told to, and says so; those in pods end with their streams.
	ending, end := context.WithCancel(ctx)
	defer end()
	streams, cut := context.WithCancel(context.WithoutCancel(ctx))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cut()
	defer end()
	words := make(chan partWord, wordsAhead)
	for i, q := range r.plan.questions {
		if len(q.Stations) > 0 {
			r.active++
		}
		asking.Go(func() {
			err := r.ask(ending, streams, i, q, func(m capture.Message) error {
				select {
				case words <- partWord{part: i, message: m}:
					return nil
				case <-streams.Done():
					return streams.Err()
				}
			})
			select {
			case words <- partWord{part: i, err: err}:
			case <-streams.Done():
			}
		})
	}
	err := r.listen(ctx, words, end)
	if finished := r.show.finish(r); err != nil || finished != nil {
		return errors.Join(err, finished)
	}
	return r.outcome()
}

// outcome is the error when nodes have failed.
func (r *captureRun) outcome() error {
	stations := 0
	for _, q := range r.plan.questions {
		if len(q.Stations) > 0 {
			stations++
		}
	}
	switch {
	case len(r.failed) == 0:
		return nil
	case len(r.failed) >= stations && r.show.packets == 0 && r.from.client == nil:
		code := ExitUnreachable
		var exit *exitError
		if errors.As(r.failed[0].Err, &exit) {
			code = exit.code
		}
		return &exitError{code, nil} // the reasons have been told as they came
	case r.from.client != nil:
		return r.app.localError(r.failed[0].Err)
	}
	return &exitError{ExitProblems, nil}
}

// listen joins what parts say, and shows it, until they have all ended or it is enough.
func (r *captureRun) listen(ctx context.Context, words <-chan partWord, end func()) error {
	look := time.NewTicker(showEvery)
	defer look.Stop()
	interrupted := ctx.Done()
	var over <-chan time.Time
	for r.joiner.Open() && r.active > 0 {
		select {
		case <-interrupted:
			interrupted, over = nil, time.After(r.lastWords())
			end()
			continue
		case <-over:
			for i := range r.plan.nodes {
				r.joiner.Gone(i, time.Now())
			}
		case <-look.C:
		case w := <-words:
			r.hear(w)
			for n := len(words); n > 0; n-- { // what has come meanwhile, before it is shown
				r.hear(<-words)
			}
		}
		if enough, err := r.pass(); enough || err != nil {
			return err
		}
	}
	for i := range r.plan.nodes {
		r.joiner.Gone(i, time.Now())
	}
	_, err := r.pass()
	return err
}

// lastWords is how long parts may take to tell of the last packets: those on other nodes cannot be told to.
func (r *captureRun) lastWords() time.Duration {
	if r.from.client != nil {
		return capture.Patience
	}
	return 2 * capture.Hold
}

func (r *captureRun) hear(w partWord) {
	now := time.Now()
	if w.err == nil {
		if w.message.Note != "" {
			r.show.note(r.plan.nodes[w.part], w.message.Note)
		}
		r.joiner.Hear(w.part, w.message, now)
		if w.message.Place != nil {
			r.show.place(r.joiner.Places(w.part))
		}
		return
	}
	r.joiner.Gone(w.part, now)
	if len(r.plan.questions[w.part].Stations) > 0 {
		r.active--
	}
	if errors.Is(w.err, io.EOF) || errors.Is(w.err, context.Canceled) {
		return
	}
	node := r.plan.nodes[w.part]
	r.failed = append(r.failed, answer[struct{}]{Node: node, Err: w.err})
	if r.from.client == nil {
		_, _ = fmt.Fprintf(r.app.Err, "node %s: %v\n", node, w.err) // nobody left to tell
	}
}

// pass shows what is ripe.
func (r *captureRun) pass() (enough bool, err error) {
	for {
		s, ok := r.joiner.Next(time.Now())
		if !ok {
			return false, r.show.flush()
		}
		if err := r.show.add(&s); err != nil {
			return true, err
		}
		if enough := r.show.enough(); enough {
			return true, nil
		}
	}
}

// ask runs a part here, or on its node.
func (r *captureRun) ask(ending, streams context.Context, i int, q capture.Question, hear func(capture.Message) error) error {
	if r.from.client != nil {
		if err := r.app.capturePart(ending, r.from.client, q, hear); err != nil {
			return err
		}
		return io.EOF
	}
	text, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("write question: %w", err)
	}
	return r.stream(streams, r.plan.agents[i], []string{"strait", capturePartVerb, string(text)}, hear)
}

// stream runs a part in the agent's pod, and hands on what it says. A part that says nothing for as long as the timeout has failed.
func (r *captureRun) stream(ctx context.Context, t target, command []string, hear func(capture.Message) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := fmt.Errorf("no answer from %s in %v", t.pod, r.app.timeout)
	limit := r.app.timeout + r.flags.lasting // some ways hand on what a command says when it has ended
	silence := time.AfterFunc(limit, func() { cancel(silent) })
	defer silence.Stop()
	heard, failed := r.from.cluster.listen(ctx, t, command, func(said io.Reader) error {
		decoder := gob.NewDecoder(said)
		for {
			var m capture.Message
			if err := decoder.Decode(&m); err != nil {
				return err
			}
			silence.Stop() // whoever joins may take as long as he wants
			if err := hear(m); err != nil {
				return err
			}
			silence.Reset(limit)
		}
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed != nil && strings.Contains(failed.Error(), `unknown verb "`+capturePartVerb+`"`):
		return errors.New("its agent's strait cannot capture: it is of another version than this command; see strait version")
	case failed != nil && !errors.Is(failed, context.Canceled): // which it is when nobody listens any more
		return failed
	case errors.Is(heard, io.EOF):
		return io.EOF
	}
	return fmt.Errorf("answer of %s is not what this version understands: %w", t.pod, heard)
}
