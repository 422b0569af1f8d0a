package image

import (
	"os"
	"path/filepath"
)

// PauseSpec is the sandbox container.
func PauseSpec(bin string) Spec {
	return Spec{
		Name:       Pause,
		Files:      map[string]File{"/pause": {Source: filepath.Join(bin, "pause"), Mode: 0o755}},
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
	}
}

// CoreDNSSpec is the cluster's DNS server.
func CoreDNSSpec(bin string) Spec {
	return Spec{
		Name:       CoreDNS,
		Files:      map[string]File{"/coredns": {Source: filepath.Join(bin, "coredns"), Mode: 0o755}},
		Entrypoint: []string{"/coredns"},
	}
}

// StraitSpec is the product: its static programs and nothing else. Programs that are not built are left out.
func StraitSpec(bin string) Spec {
	files := map[string]File{}
	for _, program := range []string{"strait", "strait-agent", "strait-cni", "strait-operator", "strait-proxy", "strait-relay"} {
		source := filepath.Join(bin, program)
		if _, err := os.Stat(source); err == nil {
			files["/usr/bin/"+program] = File{Source: source, Mode: 0o755}
		}
	}
	return Spec{
		Name: Strait, Files: files, Dirs: []string{"/tmp"},
		Entrypoint: []string{"/usr/bin/strait-agent"}, Env: []string{"PATH=/usr/bin"},
	}
}

// applets are what scripts in test pods call; busybox answers to all of them.
func applets() []string {
	return []string{"ls", "cat", "echo", "sleep", "env", "date", "head", "tail", "grep", "sed", "awk", "cut", "tr", "wc", "sort",
		"uniq", "seq", "test", "true", "false", "timeout", "kill", "ps", "id", "hostname", "mkdir", "rm", "cp", "mv", "ln", "touch", "chmod",
		"chown", "stat", "dd", "tee", "xargs", "find", "mount", "umount", "df", "du", "traceroute", "traceroute6", "nslookup", "vi",
		"top", "netstat", "ifconfig", "route", "arp", "md5sum", "sha256sum", "printf", "expr", "basename", "dirname", "readlink", "which", "nproc", "usleep"}
}

// BusyboxSpec is the small container that some upstream tests want.
func BusyboxSpec() Spec {
	files := map[string]File{"/bin/busybox": {Source: "/bin/busybox", Mode: 0o755}}
	for _, a := range append(applets(), "sh", "nc", "ping") {
		files["/bin/"+a] = File{Link: "busybox"}
	}
	return Spec{Name: Busybox, Files: files, Dirs: []string{"/tmp", "/root"}, Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}
}

// StraysSpec is the server of an upstream test about packets that belong to no connection.
func StraysSpec(bin string) Spec {
	const program = "/regression-issue-74839"
	return Spec{Name: Strays, Files: map[string]File{program: {Source: filepath.Join(bin, program), Mode: 0o755}}, Entrypoint: []string{program}}
}

// ToolPackages are the Debian packages that hold the programs of the agnhost image.
func ToolPackages() []string {
	return []string{"busybox-static", "bash", "curl", "bind9-dnsutils", "tcpdump", "netcat-openbsd", "iproute2", "iputils-ping", "wget"}
}

// AgnhostSpec is Kubernetes' test container with the tools its tests and a curious person call: a shell, curl, dig, nc, ip, ping, tcpdump. A program
// in front of it speaks SCTP where the kernel does not.
func AgnhostSpec(bin string) (Spec, error) {
	files := map[string]File{
		"/agnhost":           {Source: filepath.Join(bin, "agnhost-sctp"), Mode: 0o755},
		"/agnhost-upstream":  {Source: filepath.Join(bin, "agnhost"), Mode: 0o755},
		"/worker":            {Link: "agnhost"},
		"/bin/probe":         {Source: filepath.Join(bin, "probe"), Mode: 0o755},
		"/agnhost-2":         {Link: "agnhost"},
		"/bin/sh":            {Link: "bash"}, // the shell of busybox would prefer its own nc, ip and ping to the real ones
		"/bin/busybox":       {Source: "/bin/busybox", Mode: 0o755},
		"/etc/passwd":        {Text: "root:x:0:0:root:/root:/bin/sh\ntcpdump:x:72:72::/:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n", Mode: 0o644},
		"/etc/group":         {Text: "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n", Mode: 0o644},
		"/etc/wgetrc":        {Text: "tries = 1\n", Mode: 0o644}, // as busybox's wget, which the tests expect; else no refusal is told for minutes
		"/etc/nsswitch.conf": {Text: "passwd: files\ngroup: files\nhosts: files dns\n", Mode: 0o644},
	}
	for _, a := range applets() {
		files["/bin/"+a] = File{Link: "busybox"}
	}
	for name, candidates := range map[string][]string{
		"bash": {"/usr/bin/bash"}, "curl": {"/usr/bin/curl"}, "dig": {"/usr/bin/dig"}, "tcpdump": {"/usr/bin/tcpdump", "/usr/sbin/tcpdump"},
		"nc": {"/usr/bin/nc.openbsd", "/bin/nc.openbsd"}, "ip": {"/usr/sbin/ip", "/usr/bin/ip", "/bin/ip"}, "ss": {"/usr/bin/ss", "/bin/ss"},
		"ping": {"/usr/bin/ping", "/bin/ping"},
		"wget": {"/usr/bin/wget"}, // busybox's dies in its resolver
	} {
		program, err := firstExisting(candidates)
		if err != nil {
			return Spec{}, err
		}
		files["/bin/"+name] = File{Source: program, Mode: 0o755}
		if err := addLibraries(files, program); err != nil {
			return Spec{}, err
		}
	}
	return Spec{
		Name: Agnhost, Aliases: []string{AgnhostOfPolicies, AgnhostOfCyclonus}, Files: files, Dirs: []string{"/tmp", "/uploads", "/root"},
		Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{"PATH=/bin:/usr/bin:/"},
	}, nil
}

func firstExisting(paths []string) (string, error) {
	var err error
	for _, p := range paths {
		if _, err = os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", err
}
