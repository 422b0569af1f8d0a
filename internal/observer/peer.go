package observer

import (
	"strconv"

	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Notify implements peerpb.PeerServer: which nodes there are, then every change. Who asks an agent that does not know them yet has to wait: a
// part of them would look like nodes that are gone.
func (s *Server) Notify(_ *peerpb.NotifyRequest, stream grpc.ServerStreamingServer[peerpb.ChangeNotification]) error {
	select {
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	case <-s.c.State.Nodes.Initialized():
	}
	nodes := s.c.State.Nodes.Changes()
	defer nodes.Close()
	told := map[string]string{} // node -> address
	for first := true; ; first = false {
		changes, more := nodes.Next()
		var notices []*peerpb.ChangeNotification
		for _, c := range changes {
			if n := s.notice(told, c); n != nil {
				notices = append(notices, n)
			}
		}
		if first {
			if err := stream.SendHeader(metadata.Pairs(wire.Peers, strconv.Itoa(len(notices)))); err != nil {
				return err
			}
		}
		for _, n := range notices {
			if err := stream.Send(n); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-more:
		}
	}
}

// notice is what a client has to know of a change; nil: nothing.
func (s *Server) notice(told map[string]string, c table.Change[state.Node]) *peerpb.ChangeNotification {
	address := s.address(c.Row)
	old, known := told[c.Row.Name]
	out := &peerpb.ChangeNotification{Name: absolute(s.c.Cluster, c.Row.Name), Address: address, Type: peerpb.ChangeNotificationType_PEER_ADDED}
	if s.c.Port != 0 {
		out.Tls = &peerpb.TLS{ServerName: wire.ObserverName}
	}
	switch {
	case c.Deleted && !known, !c.Deleted && known && old == address:
		return nil
	case c.Deleted:
		delete(told, c.Row.Name)
		out.Type, out.Address = peerpb.ChangeNotificationType_PEER_DELETED, old
		return out
	case known:
		out.Type = peerpb.ChangeNotificationType_PEER_UPDATED
	}
	told[c.Row.Name] = address
	return out
}
