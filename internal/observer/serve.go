package observer

import (
	"context"
	"errors"
	"fmt"
	"net"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
)

// SocketName is the socket's name in the agent's run directory.
const SocketName = "hubble.sock"

// maxStreams is how many requests of one connection are answered at a time.
const maxStreams = 256

// Serve answers on l until ctx ends; it closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener, options ...grpc.ServerOption) error {
	server := grpc.NewServer(append(options, grpc.MaxConcurrentStreams(maxStreams))...)
	observerpb.RegisterObserverServer(server, s)
	peerpb.RegisterPeerServer(server, s)
	up := health.NewServer()
	for _, service := range []string{"", observerpb.Observer_ServiceDesc.ServiceName, peerpb.Peer_ServiceDesc.ServiceName} {
		up.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
	}
	healthpb.RegisterHealthServer(server, up)
	reflection.Register(server)
	stop := context.AfterFunc(ctx, server.Stop) // who follows flows would never be done
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve flows: %w", err)
	}
	return ctx.Err()
}
