package localapi_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/localapi"
)

func TestExplainIsAskedAndAnswered(t *testing.T) {
	ctx := context.Background()
	asked := localapi.ExplainQuestion{
		Session: "s", Entry: localapi.EntryPod, Pod: "shop/web", Service: netip.MustParseAddrPort("10.96.0.1:80"), MAC: "02:00:00:00:00:01",
		Packet: localapi.ExplainPacket{Target: netip.MustParseAddrPort("[fd00::1]:53"), Protocol: "UDP", Size: 100},
	}
	c := serve(t, localapi.Provider{Explain: func(_ context.Context, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
		if q != asked {
			t.Errorf("question %+v, want %+v", q, asked)
		}
		return localapi.ExplainPart{Node: "n1", Packet: q.Packet, Arrived: &localapi.ExplainArrived{Entry: localapi.EntryPod, Pod: "shop/db"}}, nil
	}})
	part, err := c.Explain(ctx, asked)
	if err != nil || part.Node != "n1" || part.Packet != asked.Packet || part.Arrived == nil || part.Arrived.Pod != "shop/db" {
		t.Errorf("part %+v, %v", part, err)
	}
	if _, err := c.Explain(ctx, localapi.ExplainQuestion{}); !errors.Is(err, localapi.ErrBadQuestion) || !strings.Contains(err.Error(), "session is missing") {
		t.Errorf("question without session: %v", err)
	}
	if _, err := serve(t, localapi.Provider{}).Explain(ctx, asked); !errors.Is(err, localapi.ErrNotOffered) {
		t.Errorf("an agent that cannot explain: %v", err)
	}
	if _, err := localapi.ReadExplainQuestion(strings.NewReader(`{"session":"s","entrance":"pod"}`)); !errors.Is(err, localapi.ErrBadQuestion) || !strings.Contains(err.Error(), "entrance") {
		t.Errorf("unknown field: %v", err)
	}
}
