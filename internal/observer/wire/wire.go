// Package wire is what both ends of a connection to an observer agree on: names in certificates, metadata, and signs of life.
package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// The names that certificates are for: all agents have the same, it is the client that has to be known to them, and so have all relays.
const (
	ObserverName = "observer.strait.dev"
	RelayName    = "relay.strait.dev"
)

const (
	// Beat is request metadata of GetFlows, a duration: the observer says in each such time of silence that it is there, in a NodeStatusEvent, and
	// in its time up to when it has told everything. It says so without a time at the beginning. Who does not ask never gets one.
	Beat = "strait-beat"
	// BeatEvery is what Strait's own clients ask for.
	BeatEvery = 500 * time.Millisecond
	// Peers is response metadata of Notify: how many of the first notices say which nodes there are now; what follows are changes.
	Peers = "strait-peers"
)

const (
	// maxStreams is how many requests of one connection are answered at a time.
	maxStreams = 256
	// pingEvery and pingTimeout are how a client finds out that a node is no more: gRPC allows no shorter time between pings.
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// pingClients is how often a server looks whether a silent client is still there.
	pingClients = time.Minute
)

// Alive makes a client notice within 15 s that the other end is no more.
func Alive() grpc.DialOption {
	return grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true})
}

// Serve answers on l until ctx ends; it closes l. register adds the services whose health up tells.
func Serve(ctx context.Context, l net.Listener, register func(*grpc.Server), up *health.Server, options ...grpc.ServerOption) error {
	server := grpc.NewServer(append(options, grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingClients}))...)
	register(server)
	healthpb.RegisterHealthServer(server, up)
	reflection.Register(server)
	stop := context.AfterFunc(ctx, server.Stop) // who follows flows would never be done
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve flows: %w", err)
	}
	return ctx.Err()
}

// observerHealth is what `hubble status` asks for; no service has this name.
const observerHealth = "hubble.server.Observer"

// Healthy returns a health service that says so of all these services.
func Healthy(services ...string) *health.Server {
	up := health.NewServer()
	for _, s := range append(services, observerHealth, "") {
		up.SetServingStatus(s, healthpb.HealthCheckResponse_SERVING)
	}
	return up
}

// Reason is what a call's error says to people.
func Reason(err error) string {
	text := status.Convert(err).Message()
	for _, noise := range []string{"connection error: desc = ", "transport: Error while dialing: ", "transport: "} { //nolint:misspell // gRPC's own words
		text = strings.Trim(strings.TrimPrefix(text, noise), `"`)
	}
	return text
}
