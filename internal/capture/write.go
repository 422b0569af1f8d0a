package capture

import (
	"fmt"
	"io"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Writer writes pcapng: an interface for each place, and with each packet its verdict as comments.
type Writer struct {
	out     *counter
	version string
	pcap    *pcapgo.NgWriter // nil until there is a first interface
	ids     map[*Place]int
	begun   time.Time
	seen    map[int]uint64 // packets by interface
}

// counter counts what is written.
type counter struct {
	io.Writer
	bytes int64
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.bytes += int64(n)
	return n, err
}

// NewWriter writes to w; version is that of the command.
func NewWriter(w io.Writer, version string, begun time.Time) *Writer {
	return &Writer{out: &counter{Writer: w}, version: version, ids: map[*Place]int{}, begun: begun, seen: map[int]uint64{}}
}

// Bytes is how much has been written and flushed.
func (w *Writer) Bytes() int64 { return w.out.bytes }

// Place adds an interface, once.
func (w *Writer) Place(p *Place) error {
	if _, ok := w.ids[p]; ok {
		return nil
	}
	intf := pcapgo.NgInterface{Name: p.Name(), Description: p.Describe(), Filter: p.Filter, OS: "linux", LinkType: layers.LinkType(p.Link), SnapLength: uint32(p.Snap)}
	var id int
	var err error
	if w.pcap == nil {
		options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "strait " + w.version, OS: "linux"}}
		w.pcap, err = pcapgo.NewNgWriterInterface(w.out, intf, options)
	} else {
		id, err = w.pcap.AddInterface(intf)
	}
	if err != nil {
		return fmt.Errorf("write interface %s: %w", intf.Name, err)
	}
	w.ids[p] = id
	return nil
}

// Write writes a packet.
func (w *Writer) Write(s *Seen) error {
	if err := w.Place(s.Place); err != nil {
		return err
	}
	id := w.ids[s.Place]
	w.seen[id]++
	direction := pcapgo.NgEpbFlagDirectionInbound
	if s.Out {
		direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	info := gopacket.CaptureInfo{Timestamp: s.Time, CaptureLength: len(s.Data), Length: max(s.Packet.Length, len(s.Data)), InterfaceIndex: id}
	comments := s.Verdict.Comments()
	if s.IP {
		comments = append(comments, s.From+" -> "+s.To)
	}
	err := w.pcap.WritePacketWithOptions(info, s.Data, pcapgo.NgPacketOptions{Comments: comments, Flags: &pcapgo.NgEpbFlags{Direction: direction}})
	if err != nil {
		return fmt.Errorf("write packet: %w", err)
	}
	return nil
}

// Flush hands everything to who reads.
func (w *Writer) Flush() error {
	if w.pcap == nil {
		return nil
	}
	if err := w.pcap.Flush(); err != nil {
		return fmt.Errorf("write packets: %w", err)
	}
	return nil
}

// Close writes what each interface has seen. lost is asked for the packets that were lost with a place's socket; sockets that serve several
// places are said with the first.
func (w *Writer) Close(at time.Time, lost func(*Place) uint64) error {
	for p, id := range w.ids {
		stats := pcapgo.NgInterfaceStatistics{LastUpdate: at, StartTime: w.begun, EndTime: at, PacketsReceived: w.seen[id], PacketsDropped: lost(p)}
		if err := w.pcap.WriteInterfaceStats(id, stats); err != nil {
			return fmt.Errorf("write statistics: %w", err)
		}
	}
	return w.Flush()
}

// Name is short, for a column.
func (p *Place) Name() string {
	if p.Kind == AtPod {
		return p.Device + "@" + p.Pod
	}
	return p.Device + "@" + p.Node
}

// Describe says what is seen there.
func (p *Place) Describe() string {
	switch p.Kind {
	case AtPod:
		return "pod " + p.Pod + " on node " + p.Node
	case OnTheWay:
		return "device " + p.Device + " of node " + p.Node + ", on the way to pod " + p.Pod
	}
	return "device " + p.Device + " of node " + p.Node
}
