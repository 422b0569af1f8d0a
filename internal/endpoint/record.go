package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/netdev"
)

const recordVersion = 1

// phase is how far an attachment got.
type phase int

const (
	adding phase = iota // until everything is in the kernel
	ready
)

// record is what the agent remembers of an attachment across a restart, one file each.
type record struct {
	Version     int          `json:"version"`
	Phase       phase        `json:"-"` // in the file's name
	Network     string       `json:"network"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	NetNS       string       `json:"netns"`
	NetNSCookie uint64       `json:"netnsCookie,omitempty"` // 0: not known, in records of the first version
	Namespace   string       `json:"namespace,omitempty"`
	Pod         string       `json:"pod,omitempty"`
	PodUID      string       `json:"podUID,omitempty"`
	Device      string       `json:"device"` // node's end
	Addresses   []netip.Addr `json:"addresses"`
	PodMAC      mac          `json:"podMAC"`
	HostMAC     mac          `json:"hostMAC"`
	MTU         int          `json:"mtu"`
	Created     time.Time    `json:"created"`

	HostPorts []wire.PortMapping `json:"hostPorts,omitempty"`
}

// mac is a hardware address that reads and prints as text.
type mac struct{ net.HardwareAddr }

func (m mac) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *mac) UnmarshalText(text []byte) (err error) {
	m.HardwareAddr, err = net.ParseMAC(string(text))
	return err
}

func (r *record) attachment() wire.Attachment {
	return wire.Attachment{
		Network: r.Network, ContainerID: r.ContainerID, IfName: r.IfName, NetNS: r.NetNS,
		Namespace: r.Namespace, Pod: r.Pod, PodUID: r.PodUID,
	}
}

func (r *record) key() string { return r.attachment().Key() }

// check refuses what no version of this program wrote, naming field and value.
func (r *record) check(file string) error {
	switch a := r.attachment(); {
	case r.Version != recordVersion:
		return fmt.Errorf("version is %d, want %d", r.Version, recordVersion)
	case r.ContainerID == "" || r.IfName == "" || a.FileName() != file:
		return fmt.Errorf("containerID %q and ifName %q do not belong to this file name", r.ContainerID, r.IfName)
	case r.Device != netdev.PodDevice(r.ContainerID, r.IfName):
		return fmt.Errorf("device is %q, want %q", r.Device, netdev.PodDevice(r.ContainerID, r.IfName))
	case !filepath.IsAbs(r.NetNS):
		return fmt.Errorf("netns is %q, want an absolute path", r.NetNS)
	case len(r.Addresses) == 0 || len(r.Addresses) > 2:
		return fmt.Errorf("addresses are %v, want one or two", r.Addresses)
	case len(r.PodMAC.HardwareAddr) != 6 || len(r.HostMAC.HardwareAddr) != 6:
		return fmt.Errorf("podMAC is %q and hostMAC %q, want 6 bytes each", r.PodMAC, r.HostMAC)
	case r.MTU <= 0:
		return fmt.Errorf("mtu is %d", r.MTU)
	}
	for _, a := range r.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("address %v is not a pod's", a)
		}
	}
	for _, p := range r.HostPorts {
		if !p.Complete() {
			return fmt.Errorf("host port is %s of container port %d, want two ports and a protocol", p, p.ContainerPort)
		}
	}
	return nil
}

// store is the directory of records:
//
//	<containerID>-<ifname>.adding        an attachment that is being made
//	<containerID>-<ifname>.json          a complete one
//	<containerID>-<ifname>.json.corrupt  one that could not be read, kept for a person
//	cooling/<unix ns>-<containerID>-<ifname>.json  a removed one whose addresses cool down since then
//
// A record is created once and then only renamed, which is atomic and, unlike creating a second file, always cheap. Nothing is
// synced to disk: records say what is in this kernel, and whatever ends the kernel before its page cache is written ends the
// pods, devices and maps they are about as well. kill -9 loses nothing.
type store struct{ dir string }

const (
	readySuffix   = ".json"
	addingSuffix  = ".adding"
	corruptSuffix = ".corrupt"
	tmpPrefix     = ".tmp-"
	coolingDir    = "cooling"
)

func (s store) init() error {
	if err := os.MkdirAll(filepath.Join(s.dir, coolingDir), 0o700); err != nil {
		return fmt.Errorf("make record directory: %w", err)
	}
	return nil
}

func (s store) path(r *record) string {
	name := r.attachment().FileName()
	if r.Phase == adding {
		name = strings.TrimSuffix(name, readySuffix) + addingSuffix
	}
	return filepath.Join(s.dir, name)
}

// begin writes the record of an attachment that is about to be made. A file that was not written whole is about nothing: the
// kernel is not touched before.
func (s store) begin(r *record) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(s.path(r), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", r.key(), errors.Join(err, removeIfExists(s.path(r))))
	}
	return nil
}

// commit says that the attachment is complete, and returns its record.
func (s store) commit(r *record) (*record, error) {
	done := *r
	done.Phase = ready
	if err := os.Rename(s.path(r), s.path(&done)); err != nil {
		return nil, fmt.Errorf("complete record of %s: %w", r.key(), err)
	}
	return &done, nil
}

// rewrite replaces the record of a complete attachment.
func (s store) rewrite(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write record of %s: %w", r.key(), err)
	}
	// One writer per attachment, so a fixed temporary name is free.
	tmp := filepath.Join(s.dir, tmpPrefix+r.attachment().FileName())
	if err = os.WriteFile(tmp, append(data, '\n'), 0o600); err == nil {
		err = os.Rename(tmp, s.path(r))
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", r.key(), errors.Join(err, removeIfExists(tmp)))
	}
	return nil
}

// retire turns the record into one of a released attachment. A record that does not exist is no error.
func (s store) retire(r *record, now time.Time) error {
	to := filepath.Join(s.dir, coolingDir, strconv.FormatInt(now.UnixNano(), 10)+"-"+r.attachment().FileName())
	if err := os.Rename(s.path(r), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("retire record of %s: %w", r.key(), err)
	}
	return nil
}

// read returns one record. The error describes what is wrong with the content.
func (s store) read(name string) (*record, error) {
	r, err := parse(filepath.Join(s.dir, name), strings.TrimSuffix(strings.TrimSuffix(name, addingSuffix), readySuffix)+readySuffix)
	if err == nil && strings.HasSuffix(name, readySuffix) {
		r.Phase = ready
	}
	return r, err
}

// parse reads a record that must be about the attachment of that file name.
func parse(path, name string) (*record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	r := new(record)
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if err := r.check(name); err != nil {
		return nil, err
	}
	return r, nil
}

// names returns the records' file names and those of corrupt ones, and removes what an interrupted write left.
func (s store) names() (records, corrupt []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list records: %w", err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasPrefix(name, tmpPrefix):
			err = errors.Join(err, removeIfExists(filepath.Join(s.dir, name)))
		case strings.HasSuffix(name, readySuffix), strings.HasSuffix(name, addingSuffix):
			records = append(records, name)
		case strings.HasSuffix(name, readySuffix+corruptSuffix):
			corrupt = append(corrupt, name)
		}
	}
	return records, corrupt, err
}

// setAside keeps a record that cannot be used for a person; one that was being made is about nothing and goes.
func (s store) setAside(name string) error {
	from := filepath.Join(s.dir, name)
	if strings.HasSuffix(name, addingSuffix) {
		return removeIfExists(from)
	}
	if err := os.Rename(from, from+corruptSuffix); err != nil {
		return fmt.Errorf("set record aside: %w", err)
	}
	return nil
}

// forgetCorrupt removes the unreadable record of an attachment, if there is one.
func (s store) forgetCorrupt(a wire.Attachment) error {
	return removeIfExists(filepath.Join(s.dir, a.FileName()+corruptSuffix))
}

// cooling returns the retired records with the time of their release, and forgets those older than the cool-down.
func (s store) cooling(now time.Time, coolDown time.Duration) (rest []cooled, err error) {
	dir := filepath.Join(s.dir, coolingDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list cooling addresses: %w", err)
	}
	for _, e := range entries {
		at, file, _ := strings.Cut(e.Name(), "-")
		ns, bad := strconv.ParseInt(at, 10, 64)
		released := time.Unix(0, ns)
		if bad != nil || now.Sub(released) >= coolDown {
			err = errors.Join(err, removeIfExists(filepath.Join(dir, e.Name())))
			continue
		}
		r, unreadable := parse(filepath.Join(dir, e.Name()), file)
		if unreadable != nil {
			err = errors.Join(err, removeIfExists(filepath.Join(dir, e.Name())))
			continue
		}
		rest = append(rest, cooled{addrs: r.Addresses, released: released})
	}
	return rest, err
}

type cooled struct {
	addrs    []netip.Addr
	released time.Time
}

func removeIfExists(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
