package cli

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/capture"
	"github.com/strait-net/strait/internal/capture/tap"
	"github.com/strait-net/strait/internal/localapi"
)

// capturePartVerb is one node's part of a capture; other strait commands run it there.
const capturePartVerb = "capture-part"

const (
	// markEvery is how often a part says up to when it has told everything.
	markEvery = 50 * time.Millisecond
	// retryFlows is when an observer that does not answer is asked again.
	retryFlows = 500 * time.Millisecond
	// podRing and nodeRing are the rooms for packets that wait to be read, in MiB.
	podRing, nodeRing = 32, 16
)

func (a *app) capturePartCmd() *cobra.Command {
	return &cobra.Command{
		Use:    capturePartVerb + " QUESTION",
		Short:  "A node's part of a capture, asked in JSON and answered in a form for this command only",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var q capture.Question
			if err := json.Unmarshal([]byte(args[0]), &q); err != nil {
				return usage("read question: %w", err)
			}
			client, err := a.local(cmd.Context())
			if err != nil {
				return err
			}
			if client == nil {
				return usage("%s is asked of nodes", capturePartVerb)
			}
			out := gob.NewEncoder(a.Out)
			return a.capturePart(cmd.Context(), client, q, func(m capture.Message) error { return out.Encode(m) })
		},
	}
}

// capturing is a part that runs.
type capturing struct {
	app    *app
	q      capture.Question
	client *localapi.Client

	mu    sync.Mutex // guards those below, and tell
	tell  func(capture.Message) error
	err   error // of tell: nobody listens any more
	flows bool

	taps   []*station
	places map[spot]*capture.Place
	marked time.Time
}

// station is one socket.
type station struct {
	*tap.Tap
	number int // of the question's stations
	pod    string
	kind   capture.Kind
	filter capture.Filter
	own    []netip.Addr // whose packets these are
	device string       // of AtPod
}

// spot is a device that a socket sees.
type spot struct {
	station *station
	device  int
}

// capturePart sees packets until ctx ends or the time is over, and then waits for what is told of the last ones.
func (a *app) capturePart(ctx context.Context, client *localapi.Client, q capture.Question, tell func(capture.Message) error) (err error) {
	c := &capturing{app: a, q: q, client: client, tell: tell, places: map[spot]*capture.Place{}}
	defer func() { err = errors.Join(err, c.close()) }()
	beyond, cancel := context.WithCancel(context.WithoutCancel(ctx)) // flows are told of later than of packets
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	listening := make(chan struct{})
	following.Go(func() { c.follow(beyond, sync.OnceFunc(func() { close(listening) })) })
	select { // what it remembers should be there when packets are
	case <-listening:
	case <-time.After(time.Second):
	}
	if err := c.open(ctx); err != nil {
		return err
	}
	return c.run(ctx)
}

// follow tells of connections until ctx ends. An agent that is away is asked again.
func (c *capturing) follow(ctx context.Context, listening func()) {
	for told := ""; ; {
		err := c.app.followFlows(ctx, c.q.About, func() {
			if told != "" {
				_ = c.say(capture.Message{Note: "verdicts again"}) // the taps find out as well
			}
			told = ""
			c.mu.Lock()
			c.flows = true
			c.mu.Unlock()
			listening()
		}, func(e capture.Event) error { return c.say(capture.Message{Event: &e}) })
		if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			_ = c.say(capture.Message{Note: "no verdicts from here on: " + told})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryFlows):
		}
	}
}

// say hands a message on; after an error nothing more.
func (c *capturing) say(m capture.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = c.tell(m)
	}
	return c.err
}

// open opens the sockets, and then asks for the connections that are there already.
func (c *capturing) open(ctx context.Context) error {
	for i, s := range c.q.Stations {
		if s.Pod == "" {
			if err := c.tap(&station{number: i, kind: capture.AtNode, filter: s.Filter, own: s.Filter.Ends}, "", nodeRing); err != nil {
				return err
			}
			continue
		}
		end, err := localEndpoint(ctx, c.client, s.Pod)
		if err != nil {
			return c.app.localError(err)
		}
		on := s.Filter
		on.ToEnds = true
		if err := c.tap(&station{number: i, pod: s.Pod, kind: capture.OnTheWay, filter: on}, "", nodeRing); err != nil {
			return err
		}
		at := &station{number: i, pod: s.Pod, kind: capture.AtPod, filter: s.Filter, own: s.Filter.Ends, device: end.IfName}
		if s.Filter.All() {
			at.filter = capture.Filter{} // also what it sends with somebody else's address
		}
		if err := inNamespace(end.NetNS, func() error { return c.tap(at, end.IfName, podRing) }); err != nil {
			return fmt.Errorf("capture at pod %s: %w", s.Pod, err)
		}
		if _, err := c.place(at, tap.Frame{Link: etherDevice}); err != nil {
			return err
		}
	}
	if len(c.taps) == 0 {
		return nil
	}
	known, err := knownConnections(ctx, c.client, c.q.About)
	if err != nil {
		return c.say(capture.Message{Note: "connections of before are not known: " + err.Error()})
	}
	for i := range known {
		if err := c.say(capture.Message{Event: &known[i]}); err != nil {
			return err
		}
	}
	return nil
}

func (c *capturing) tap(s *station, device string, mebibytes int) error {
	program, err := s.filter.Program(capture.NetworkOffset, c.q.Snap)
	if err != nil {
		return err
	}
	s.Tap, err = tap.Open(tap.Config{Device: device, Filter: program, Incoming: s.kind == capture.OnTheWay, Size: mebibytes << 20})
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: try sudo", err)
	}
	if err == nil {
		c.taps = append(c.taps, s)
	}
	return err
}

func (c *capturing) close() error {
	var errs []error
	for _, s := range c.taps {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (c *capturing) run(ctx context.Context) error {
	if c.q.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.q.For)
		defer cancel()
	}
	for ctx.Err() == nil {
		if err := c.look(); err != nil {
			return err
		}
	}
	for end := time.Now().Add(capture.Hold + 2*tap.Linger); time.Now().Before(end); { // what is told of the last packets
		if err := c.look(); err != nil {
			return err
		}
	}
	return c.mark(time.Now(), true)
}

// look reads what there is, and says so. It takes no longer than a mark may be late.
func (c *capturing) look() error {
	begun := time.Now()
	if len(c.taps) == 0 {
		time.Sleep(markEvery)
		return c.mark(begun, false)
	}
	taps := make([]*tap.Tap, 0, len(c.taps))
	for _, s := range c.taps {
		taps = append(taps, s.Tap)
	}
	if err := tap.Wait(taps, markEvery); err != nil {
		return err
	}
	begun = time.Now()
	for _, s := range c.taps {
		s.Read(func(f tap.Frame) { c.frame(s, f) })
	}
	if begun.Sub(c.marked) < markEvery {
		return nil
	}
	return c.mark(begun, false)
}

// mark says that everything has been told that was to be read at a time.
func (c *capturing) mark(read time.Time, last bool) error {
	c.marked = read
	m := capture.Mark{Until: read.Add(-2 * tap.Linger), Last: last, Stats: make([]capture.Stats, len(c.q.Stations))}
	for _, s := range c.taps {
		seen, lost, err := s.Count()
		if err != nil {
			return err
		}
		m.Stats[s.number].Seen += seen
		m.Stats[s.number].Lost += lost
	}
	c.mu.Lock()
	m.Flows = c.flows
	c.mu.Unlock()
	return c.say(capture.Message{Mark: &m})
}

// frame tells of a packet that is wanted.
func (c *capturing) frame(s *station, f tap.Frame) {
	h := capture.Decode(linkOf(f.Link), f.Data)
	if !s.filter.Match(&h, f.Data) {
		return
	}
	p, err := c.place(s, f)
	if err != nil {
		return // nobody listens
	}
	packet := capture.Packet{Place: p.Number, Time: f.Time, Out: f.Out, Length: f.Length, Data: append([]byte(nil), f.Data...)}
	_ = c.say(capture.Message{Packet: &packet}) // the mark that follows finds out as well
}

// place tells of a device when something is seen there first.
func (c *capturing) place(s *station, f tap.Frame) (*capture.Place, error) {
	at := spot{s, f.Device}
	if s.kind == capture.AtPod {
		at.device = 0 // it sees one only
	}
	if p := c.places[at]; p != nil {
		return p, nil
	}
	p := &capture.Place{
		Number: len(c.places), Pod: s.pod, Device: s.device, Kind: s.kind, Link: linkOf(f.Link), Snap: c.q.Snap, Filter: s.filter.String(), Station: s.number,
		Own: s.own,
	}
	if s.kind != capture.AtPod {
		p.Device = fmt.Sprintf("device %d", f.Device)
		if device, err := net.InterfaceByIndex(f.Device); err == nil {
			p.Device = device.Name
		}
	}
	c.places[at] = p
	return p, c.say(capture.Message{Place: p})
}

// Hardware types whose frames begin with an Ethernet header (linux/if_arp.h).
const etherDevice, loopbackDevice = 1, 772

func linkOf(hardware uint16) uint16 {
	if hardware == etherDevice || hardware == loopbackDevice {
		return capture.LinkEthernet
	}
	return capture.LinkRaw
}
