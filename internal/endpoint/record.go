package endpoint

import (
	"bytes"
	"cmp"
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

// recordPhase is how far an attachment got: adding until everything is in the kernel, then ready.
type recordPhase string

const (
	recordAdding recordPhase = "adding"
	recordReady  recordPhase = "ready"
)

// record is what the agent remembers of an attachment across a restart, one file each.
type record struct {
	Version     int          `json:"version"`
	Phase       recordPhase  `json:"state"`
	Network     string       `json:"network"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	NetNS       string       `json:"netns"`
	Namespace   string       `json:"namespace,omitempty"`
	Pod         string       `json:"pod,omitempty"`
	PodUID      string       `json:"podUID,omitempty"`
	Device      string       `json:"device"` // node's end
	Addresses   []netip.Addr `json:"addresses"`
	PodMAC      mac          `json:"podMAC"`
	HostMAC     mac          `json:"hostMAC"`
	MTU         int          `json:"mtu"`
	Created     time.Time    `json:"created"`
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
	case r.Phase != recordAdding && r.Phase != recordReady:
		return fmt.Errorf("state is %q, want %q or %q", r.Phase, recordAdding, recordReady)
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
	return nil
}

// store is the directory of records:
//
//	<containerID>-<ifname>.json        an attachment
//	<containerID>-<ifname>.json.corrupt  one that could not be read, kept for a person
//	cooling/<unix ns>-<file name>      a removed attachment whose addresses cool down since then
//
// Files are replaced by rename and not synced to disk: they say what is in this kernel, and whatever ends the kernel before
// its page cache is written ends the pods, devices and maps the records are about as well. kill -9 loses nothing.
type store struct{ dir string }

const (
	tmpPrefix     = ".tmp-"
	corruptSuffix = ".corrupt"
	coolingDir    = "cooling"
)

func (s store) init() error {
	if err := os.MkdirAll(filepath.Join(s.dir, coolingDir), 0o700); err != nil {
		return fmt.Errorf("make record directory: %w", err)
	}
	return nil
}

func (s store) write(r *record) (err error) {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write record of %s: %w", r.key(), err)
	}
	name := r.attachment().FileName()
	// One writer per attachment, so a fixed temporary name is free.
	tmp := filepath.Join(s.dir, tmpPrefix+name)
	if err = os.WriteFile(tmp, append(data, '\n'), 0o600); err == nil {
		err = os.Rename(tmp, filepath.Join(s.dir, name))
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", r.key(), errors.Join(err, removeIfExists(tmp)))
	}
	return nil
}

// retire turns the record into one of a released attachment. A record that does not exist is no error.
func (s store) retire(r *record, now time.Time) error {
	name := r.attachment().FileName()
	to := filepath.Join(s.dir, coolingDir, strconv.FormatInt(now.UnixNano(), 10)+"-"+name)
	if err := os.Rename(filepath.Join(s.dir, name), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("retire record of %s: %w", r.key(), err)
	}
	return nil
}

// read returns one record. The error describes what is wrong with the content.
func (s store) read(name string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	r := new(record)
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if err := r.check(filepath.Base(name)); err != nil {
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
		case strings.HasSuffix(name, ".json"):
			records = append(records, name)
		case strings.HasSuffix(name, ".json"+corruptSuffix):
			corrupt = append(corrupt, name)
		}
	}
	return records, corrupt, err
}

// setAside keeps a record that cannot be read for a person.
func (s store) setAside(name string) error {
	from := filepath.Join(s.dir, name)
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
		data, unreadable := os.ReadFile(filepath.Join(dir, e.Name()))
		var r record
		if cmp.Or(unreadable, json.Unmarshal(data, &r)) != nil || r.check(file) != nil {
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
