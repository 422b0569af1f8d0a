package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/capture"
)

// captureDisplay shows packets as lines, or writes them into a file.
type captureDisplay struct {
	app    *app
	flags  captureFlags
	begun  time.Time
	pcap   *capture.Writer // nil: lines
	file   *os.File        // nil: standard output
	pods   int             // that are captured at: with several a line says at which
	places []*capture.Place

	packets  uint64
	outcomes map[capture.Outcome]uint64
	why      string // it has ended by itself
	told     time.Time
}

// display opens where packets go.
func (a *app) display(f captureFlags, p plan) (*captureDisplay, error) {
	d := &captureDisplay{app: a, flags: f, begun: a.Now(), outcomes: map[capture.Outcome]uint64{}, pods: len(p.words)}
	switch f.file {
	case "":
	case "-":
		d.pcap = capture.NewWriter(a.Out, a.Version, d.begun)
	default:
		file, err := f.openFile()
		if err != nil {
			return nil, err
		}
		d.file, d.pcap = file, capture.NewWriter(file, a.Version, d.begun)
	}
	how := "; Ctrl-C ends it"
	if f.lasting > 0 {
		how = fmt.Sprintf(" for %v", f.lasting)
	}
	d.say("capturing at " + strings.Join(p.words, " and at ") + how)
	return d, nil
}

// say tells the person: packets have standard output for themselves.
func (d *captureDisplay) say(text string) {
	_, _ = fmt.Fprintln(d.app.Err, text) // nobody left to tell
}

func (d *captureDisplay) note(node, text string) { d.say(node + ": " + text) }

// place remembers where packets are seen. Pods' interfaces are in the file also if there is no packet.
func (d *captureDisplay) place(all []*capture.Place) {
	for _, p := range all {
		if slices.Contains(d.places, p) {
			continue
		}
		d.places = append(d.places, p)
		if d.pcap != nil && p.Kind == capture.AtPod {
			_ = d.pcap.Place(p) // the packets that follow find out as well
		}
	}
}

// add shows a packet.
func (d *captureDisplay) add(s *capture.Seen) error {
	d.packets++
	d.outcomes[s.Verdict.Outcome]++
	switch {
	case d.pcap != nil:
		return d.pcap.Write(s)
	case d.app.output.forPeople():
		return d.app.write(d.line(s))
	}
	text, err := json.Marshal(d.row(s))
	if err != nil {
		return fmt.Errorf("print packet: %w", err)
	}
	if d.app.output == formatYAML {
		return d.app.write("---\n" + string(text) + "\n") // JSON is YAML
	}
	return d.app.write(string(text) + "\n")
}

// enough reports whether as much has been captured as was asked for.
func (d *captureDisplay) enough() bool {
	switch {
	case d.flags.count > 0 && d.packets >= d.flags.count:
		d.why = fmt.Sprintf(", as many as wanted (--count %d)", d.flags.count)
	case d.pcap != nil && d.pcap.Bytes() >= d.flags.most:
		d.why = ", ended by its size (--max-size " + d.flags.maxSize + ")"
	}
	return d.why != ""
}

// progress is how often a person is told how much there is.
const progress = 10 * time.Second

func (d *captureDisplay) flush() error {
	if d.pcap == nil {
		return nil
	}
	if now := time.Now(); now.Sub(d.told) >= progress {
		if !d.told.IsZero() && d.flags.file != "-" {
			d.say(fmt.Sprintf("%d packets, %s so far", d.packets, sizeText(uint64(d.pcap.Bytes()))))
		}
		d.told = now
	}
	return d.pcap.Flush()
}

// finish completes the file, and sums up.
func (d *captureDisplay) finish(r *captureRun) error {
	lost := map[int]uint64{}
	var all uint64
	for i := range r.plan.nodes {
		lost[i] = r.joiner.Stats(i).Lost
		all += lost[i]
	}
	var err error
	if d.pcap != nil {
		err = d.close(r, lost)
	}
	if d.packets == 0 && len(r.failed) > 0 && len(d.places) == 0 {
		if d.file != nil {
			err = errors.Join(err, os.Remove(d.file.Name())) // there is nothing in it
		}
		return err
	}
	var parts []string
	for _, o := range []capture.Outcome{capture.Allowed, capture.WasDenied, capture.WasDropped, capture.NotKnown} {
		if n := d.outcomes[o]; n > 0 {
			word := string(o)
			if o == capture.NotKnown {
				word = "without verdict"
			}
			parts = append(parts, fmt.Sprintf("%d %s", n, word))
		}
	}
	text := fmt.Sprintf("%d packets in %v", d.packets, d.app.Now().Sub(d.begun).Round(100*time.Millisecond))
	if d.file != nil {
		text += fmt.Sprintf(" in %s (%s)", d.flags.file, sizeText(uint64(d.pcap.Bytes())))
	}
	text += d.why
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	if all > 0 {
		d.say(text + "; " + d.app.paint(yellow, fmt.Sprintf("%d more were lost for want of room: narrow it down, or keep less of each (--snaplen)", all)))
		return err
	}
	d.say(text + "; none lost by the capture")
	return err
}

// close writes statistics. A file has at least one interface.
func (d *captureDisplay) close(r *captureRun, lost map[int]uint64) error {
	if len(d.places) == 0 && d.packets == 0 {
		place := &capture.Place{Device: "any", Node: r.plan.nodes[0], Kind: capture.AtNode, Link: capture.LinkEthernet, Snap: d.flags.snap}
		if err := d.pcap.Place(place); err != nil {
			return err
		}
	}
	said := map[int]bool{} // losses are those of a node's sockets: they are said once
	err := d.pcap.Close(d.app.Now(), func(p *capture.Place) uint64 {
		n := slices.Index(r.plan.nodes, p.Node)
		if n < 0 || said[n] {
			return 0
		}
		said[n] = true
		return lost[n]
	})
	var closing io.Closer = d.file
	if d.file != nil {
		err = errors.Join(err, closing.Close())
	}
	return err
}

// line is a packet for a person.
func (d *captureDisplay) line(s *capture.Seen) string {
	where := "in "
	if s.Out {
		where = "out"
	}
	switch {
	case s.Place.Kind != capture.AtPod:
		where = s.Place.Name() + " " + where
	case d.pods > 1:
		where = s.Place.Pod + " " + where
	}
	text := d.app.paint(faint, s.Time.In(d.app.Now().Location()).Format("15:04:05.000000")) + " " + where + " "
	if s.IP {
		text += s.From + " -> " + s.To + " " + wireText(s) + " "
	} else {
		text += fmt.Sprintf("%d bytes ", s.Packet.Length)
	}
	text += d.app.paint(outcomeStyle(s.Verdict.Outcome), s.Verdict.Text)
	if s.Verdict.Service != "" && !strings.HasPrefix(s.Verdict.Text, "known") {
		text += " (" + s.Verdict.Service + ")"
	}
	return text + "\n"
}

func outcomeStyle(o capture.Outcome) style {
	switch o {
	case capture.Allowed:
		return green
	case capture.WasDenied, capture.WasDropped:
		return red
	}
	return yellow
}

// wireText is the protocol with its flags, and how much it carries.
func wireText(s *capture.Seen) string {
	text := strings.ToUpper(capture.ProtocolName(s.Protocol))
	switch {
	case s.Protocol == capture.TCP && s.Ports && !s.Later:
		text += " [" + tcpFlagText(s.TCPFlags) + "]"
	case (s.Protocol == capture.ICMP || s.Protocol == capture.ICMPv6) && !s.Later:
		name := "ICMP"
		request, reply := uint32(8), uint32(0)
		if s.Protocol == capture.ICMPv6 {
			name, request, reply = "ICMPv6", 128, 129
		}
		text = icmpName(name, uint32(s.ICMPType), uint32(s.ICMPCode), request, reply)
	}
	if s.Fragment {
		text += " fragment"
	}
	return fmt.Sprintf("%s length %d", text, s.Payload)
}

// tcpFlagText is as tcpdump writes it.
func tcpFlagText(f uint8) string {
	text := ""
	for _, flag := range []struct {
		bit  uint8
		sign string
	}{{capture.SYN, "S"}, {capture.FIN, "F"}, {capture.RST, "R"}, {capture.PSH, "P"}, {capture.URG, "U"}, {capture.ECE, "E"}, {capture.CWR, "W"}, {capture.ACK, "."}} {
		if f&flag.bit != 0 {
			text += flag.sign
		}
	}
	if text == "" {
		return "none"
	}
	return text
}

// captureRow is a packet for programs.
type captureRow struct {
	Time        time.Time       `json:"time"`
	Node        string          `json:"node"`
	Device      string          `json:"device"`
	Pod         string          `json:"pod,omitempty"`
	Out         bool            `json:"out"` // sent by the pod or node
	Source      string          `json:"source,omitempty"`
	Destination string          `json:"destination,omitempty"`
	From        string          `json:"from,omitempty"` // the same, with names
	To          string          `json:"to,omitempty"`
	Protocol    string          `json:"protocol,omitempty"`
	TCPFlags    string          `json:"tcpFlags,omitempty"`
	Length      int             `json:"length"` // of the frame
	Payload     int             `json:"payload"`
	Verdict     capture.Verdict `json:"verdict"`
}

func (d *captureDisplay) row(s *capture.Seen) captureRow {
	r := captureRow{
		Time: s.Time, Node: s.Place.Node, Device: s.Place.Device, Pod: s.Place.Pod, Out: s.Out, Length: s.Packet.Length, Payload: s.Payload, Verdict: s.Verdict,
	}
	if s.IP {
		r.Source, r.Destination, r.From, r.To = s.EndName(s.Source, nil), s.EndName(s.Target, nil), s.From, s.To
		r.Protocol = capture.ProtocolName(s.Protocol)
	}
	if s.Protocol == capture.TCP && s.Ports && !s.Later {
		r.TCPFlags = tcpFlagText(s.TCPFlags)
	}
	return r
}
