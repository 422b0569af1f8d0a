package observer

import (
	"context"
	"net"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"

	"github.com/strait-net/strait/internal/observer/wire"
)

// SocketName is the socket's name in the agent's run directory.
const SocketName = "hubble.sock"

// Serve answers on l until ctx ends; it closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener, options ...grpc.ServerOption) error {
	up := wire.Healthy(observerpb.Observer_ServiceDesc.ServiceName, peerpb.Peer_ServiceDesc.ServiceName)
	return wire.Serve(ctx, l, func(server *grpc.Server) {
		observerpb.RegisterObserverServer(server, s)
		peerpb.RegisterPeerServer(server, s)
	}, up, options...)
}
