// SPDX-License-Identifier: Apache-2.0
// rr is one end of a measured conversation: a blocking, single-threaded server or client that adds as little as possible to the path.
//
//   rr server PORT            one child per mode and family on PORT+mode; prints "ready" when all listen
//   rr client MODE ADDR PORT  runs one sample and prints one JSON line
//   rr flood ADDR FIRST RATE  sends datagrams that belong to a connection each, and prints how many
//
// Common options: -c CPU pin, -r PRIORITY real-time (SCHED_FIFO), -g FILE write own pid into a cgroup.procs file (repeatable),
// not the server: -t MS measured time; client only: -w MS warm-up.
//
// Modes and their ports: stream 0, rr 1, crr 2, udprr 3, udppps 4.
// crr ends every connection with an orderly close started by the client, which waits for the server's FIN, so that
// a path's connection tracking sees whole connections.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum mode { STREAM, RR, CRR, UDPRR, UDPPPS, MODES };
static const char *const mode_name[MODES] = {"stream", "rr", "crr", "udprr", "udppps"};
enum { CHUNK = 128 << 10, BATCH = 32, DATAGRAM = 64, RCVBUF = 4 << 20 };
static char chunk[CHUNK];

static void die(const char *what) {
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* ---- latency histogram: 64 linear steps per power of two of nanoseconds, so quantiles are exact to 1.6 % ---- */

enum { STEPS = 128 };
static uint32_t hist[64 * STEPS];

static void hist_add(uint64_t ns) {
	int exp = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - 6;
	hist[exp * STEPS + (ns >> exp)]++;
}

static uint64_t hist_quantile(uint64_t n, double q) {
	uint64_t seen = 0, want = (uint64_t)(n * q);
	for (unsigned i = 0; i < 64 * STEPS; i++) {
		seen += hist[i];
		if (seen > want)
			return (uint64_t)(i % STEPS) << (i / STEPS);
	}
	return 0;
}

/* ---- sockets ---- */

static socklen_t parse(struct sockaddr_storage *out, const char *addr, int port) {
	struct sockaddr_in *v4 = (void *)out;
	struct sockaddr_in6 *v6 = (void *)out;
	memset(out, 0, sizeof(*out));
	if (inet_pton(AF_INET, addr, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, addr, &v6->sin6_addr) != 1) {
		errno = EINVAL;
		die(addr);
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	return sizeof(*v6);
}

static int is_tcp(enum mode m) { return m < UDPRR; }

static int opened(int family, enum mode m) {
	int one = 1, size = RCVBUF;
	int fd = socket(family, is_tcp(m) ? SOCK_STREAM : SOCK_DGRAM, 0);
	if (fd < 0)
		die("socket");
	if (is_tcp(m))
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	else if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	return fd;
}

static int dial(struct sockaddr_storage *to, socklen_t len, enum mode m) {
	struct timeval patience = {.tv_sec = 2};
	int fd = opened(to->ss_family, m);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(fd, (void *)to, len))
		die("connect");
	return fd;
}

/* ---- server ---- */

static void serve_tcp(int listener, enum mode m) {
	for (;;) {
		char b;
		ssize_t n;
		uint64_t total = 0;
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		if (m == STREAM) {
			while ((n = recv(fd, chunk, sizeof(chunk), 0)) > 0)
				total += n;
		} else {
			int one = 1;
			if (m == RR)
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			while (recv(fd, &b, 1, 0) == 1 && send(fd, &b, 1, MSG_NOSIGNAL) == 1)
				;
		}
		close(fd);
	}
}

static void serve_udp(int fd, enum mode m) {
	struct sockaddr_storage from;
	uint64_t received = 0;
	struct iovec iov = {.iov_base = chunk, .iov_len = DATAGRAM};
	for (;;) {
		struct msghdr h = {.msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1};
		if (recvmsg(fd, &h, 0) < 1)
			continue;
		if (m == UDPRR)
			sendto(fd, chunk, 1, 0, (void *)&from, h.msg_namelen);
		else if (chunk[0] == 'Q')
			sendto(fd, &received, sizeof(received), 0, (void *)&from, h.msg_namelen);
		else
			received++;
	}
}

static void server(int port) {
	for (int i = 0; i < 2 * MODES; i++) {
		enum mode m = i / 2;
		struct sockaddr_storage any;
		socklen_t len = parse(&any, i % 2 ? "::" : "0.0.0.0", port + m);
		int one = 1, fd = opened(any.ss_family, m);
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (i % 2)
			setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
		if (bind(fd, (void *)&any, len) || (is_tcp(m) && listen(fd, 1024)))
			die("listen");
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			is_tcp(m) ? serve_tcp(fd, m) : serve_udp(fd, m);
		}
		close(fd);
	}
	puts("ready");
	fflush(stdout);
	while (wait(NULL) > 0)
		;
}

/* ---- client ---- */

struct sample {
	uint64_t ops, all, bytes, ns, sent; /* all: operations including the warm-up, for CPU per operation */
};

static uint64_t acked(int fd, uint64_t sent) {
	int queued = 0;
	ioctl(fd, SIOCOUTQ, &queued);
	return sent - queued;
}

static void run_stream(int fd, uint64_t warm, uint64_t length, struct sample *s) {
	uint64_t begin = now(), t0 = 0, b0 = 0, t;
	for (;;) {
		ssize_t n = send(fd, chunk, sizeof(chunk), MSG_NOSIGNAL);
		if (n < 0)
			die("send");
		s->sent += n;
		t = now();
		if (!t0 && t >= begin + warm)
			t0 = t, b0 = acked(fd, s->sent);
		if (t0 && t >= t0 + length)
			break;
	}
	s->bytes = acked(fd, s->sent) - b0;
	s->ns = t - t0;
	s->all = s->sent;
	s->ops = s->bytes;
}

static void exchange(int fd) {
	char b = 'x';
	if (send(fd, &b, 1, MSG_NOSIGNAL) != 1)
		die("send");
	if (recv(fd, &b, 1, 0) != 1)
		die("recv");
}

static void connection(struct sockaddr_storage *to, socklen_t len) {
	char b;
	int fd = dial(to, len, CRR);
	exchange(fd);
	shutdown(fd, SHUT_WR);
	if (recv(fd, &b, 1, 0) != 0)
		die("recv of end");
	close(fd);
}

static void run_rr(enum mode m, struct sockaddr_storage *to, socklen_t len, uint64_t warm, uint64_t length, struct sample *s) {
	int fd = m == CRR ? -1 : dial(to, len, m);
	uint64_t begin = now(), t0 = 0, last = begin, t;
	for (;;) {
		if (m == CRR)
			connection(to, len);
		else
			exchange(fd);
		t = now();
		s->all++;
		if (t0) {
			s->ops++;
			hist_add(t - last);
		} else if (t >= begin + warm) {
			t0 = t;
		}
		last = t;
		if (t0 && t >= t0 + length)
			break;
	}
	s->ns = t - t0;
}

static uint64_t query(int fd) {
	uint64_t received;
	char q = 'Q';
	for (int try = 0; try < 20; try++) {
		usleep(20000);
		if (send(fd, &q, 1, 0) == 1 && recv(fd, &received, sizeof(received), 0) == sizeof(received))
			return received;
	}
	errno = ETIMEDOUT;
	die("query of received datagrams");
	return 0;
}

static uint64_t blast(int fd, uint64_t length, uint64_t *sent) {
	struct iovec iov = {.iov_base = chunk, .iov_len = DATAGRAM};
	struct mmsghdr batch[BATCH];
	uint64_t begin = now(), t;
	memset(batch, 0, sizeof(batch));
	for (int i = 0; i < BATCH; i++)
		batch[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
	do {
		int n = sendmmsg(fd, batch, BATCH, 0);
		if (n > 0)
			*sent += n;
		t = now();
	} while (t < begin + length);
	return t - begin;
}

static void run_pps(int fd, uint64_t warm, uint64_t length, struct sample *s) {
	uint64_t first = query(fd), warmed;
	blast(fd, warm, &s->sent);
	warmed = query(fd);
	s->sent = 0;
	s->ns = blast(fd, length, &s->sent);
	uint64_t last = query(fd);
	s->ops = last - warmed;
	s->all = last - first;
}

static void client(enum mode m, const char *addr, int port, uint64_t warm, uint64_t length) {
	struct sockaddr_storage to;
	struct sample s = {0};
	socklen_t len = parse(&to, addr, port + m);
	if (m == STREAM)
		run_stream(dial(&to, len, m), warm, length, &s);
	else if (m == UDPPPS)
		run_pps(dial(&to, len, m), warm, length, &s);
	else
		run_rr(m, &to, len, warm, length, &s);
	printf("{\"mode\":\"%s\",\"ops\":%lu,\"all_ops\":%lu,\"sent\":%lu,\"ns\":%lu,\"p50_ns\":%lu,\"p99_ns\":%lu}\n", mode_name[m], s.ops, s.all,
	       s.sent, s.ns, hist_quantile(s.ops, 0.50), hist_quantile(s.ops, 0.99));
}

/* ---- flood ---- */

/* Every datagram is of another pair of ports, by its number, those of the other end changing fastest: what remembers connections sees a new one
 * each time, what remembers who talked to which port does not see the same again soon. No socket has so many ports, so it is a raw one; it is not
 * connected, or errors that come back would be the sender's. */
enum { PORTS = 60000, LOWEST = 1024, NAP = 50000 };

struct datagram {
	struct udphdr udp;
	char text[DATAGRAM - sizeof(struct udphdr)];
};

static void fill(struct datagram *d, uint64_t number) {
	d->udp.dest = htons(LOWEST + number % PORTS);
	d->udp.source = htons(LOWEST + number / PORTS % PORTS);
	d->udp.len = htons(sizeof(*d)); /* no checksum: IPv4 allows it */
}

/* rate: datagrams per second, 0: as many as there can be. */
static void flood(const char *addr, uint64_t first, uint64_t rate, uint64_t length) {
	static struct datagram text[BATCH];
	struct iovec iov[BATCH];
	struct mmsghdr batch[BATCH];
	struct sockaddr_storage to;
	socklen_t len = parse(&to, addr, 0);
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);
	if (fd < 0)
		die("raw socket");
	memset(batch, 0, sizeof(batch));
	for (int i = 0; i < BATCH; i++) {
		iov[i] = (struct iovec){.iov_base = &text[i], .iov_len = sizeof(text[i])};
		batch[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = len, .msg_iov = &iov[i], .msg_iovlen = 1};
	}
	uint64_t begin = now(), sent = 0, t;
	while ((t = now()) < begin + length) {
		uint64_t due = rate ? (t - begin) * rate / 1000000000 : sent + BATCH;
		int n = due > sent + BATCH ? BATCH : (int)(due - sent);
		if (n <= 0) {
			nanosleep(&(struct timespec){.tv_nsec = NAP}, NULL);
			continue;
		}
		for (int i = 0; i < n; i++)
			fill(&text[i], first + sent + i);
		if ((n = sendmmsg(fd, batch, n, 0)) < 0)
			die("flood");
		sent += n;
	}
	printf("{\"sent\":%lu,\"ns\":%lu}\n", sent, t - begin);
}

static void join(const char *file) {
	FILE *f = fopen(file, "w");
	if (!f || fprintf(f, "0\n") < 0 || fclose(f))
		die(file);
}

int main(int argc, char **argv) {
	uint64_t warm = 100, length = 1000;
	int opt;
	cpu_set_t cpus;
	while ((opt = getopt(argc, argv, "+c:r:g:t:w:")) != -1) {
		switch (opt) {
		case 'c':
			CPU_ZERO(&cpus);
			CPU_SET(atoi(optarg), &cpus);
			if (sched_setaffinity(0, sizeof(cpus), &cpus))
				die("pin to cpu");
			break;
		case 'r': {
			struct sched_param param = {.sched_priority = atoi(optarg)};
			if (sched_setscheduler(0, SCHED_FIFO, &param))
				die("real-time priority");
			break;
		}
		case 'g': join(optarg); break;
		case 't': length = strtoull(optarg, NULL, 10); break;
		case 'w': warm = strtoull(optarg, NULL, 10); break;
		default: return 2;
		}
	}
	argc -= optind, argv += optind;
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc == 2 && !strcmp(argv[0], "server")) {
		server(atoi(argv[1]));
		return 0;
	}
	if (argc == 4 && !strcmp(argv[0], "client"))
		for (int m = 0; m < MODES; m++)
			if (!strcmp(argv[1], mode_name[m])) {
				client(m, argv[2], atoi(argv[3]), warm * 1000000, length * 1000000);
				return 0;
			}
	if (argc == 4 && !strcmp(argv[0], "flood")) {
		flood(argv[1], strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), length * 1000000);
		return 0;
	}
	fprintf(stderr, "usage: rr [-c CPU] [-r PRIORITY] [-g FILE] server PORT | [-t MS] [-w MS] client MODE ADDR PORT | [-t MS] flood ADDR FIRST RATE\n");
	return 2;
}
