package metric

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/localapi"
)

// flowDescs are the metrics of flows. Packets are counted exactly by strait_datapath_packets_total and strait_policy_packets_total; these say
// in which direction, and how much of what happened has been told.
type flowDescs struct {
	flows, kept, lost, lostPackets, stopped, ringUsed, ringSize *prometheus.Desc
}

func newFlowDescs(d func(name, help string, labels ...string) *prometheus.Desc) flowDescs {
	return flowDescs{
		flows: d("flows_total", "What happened to connections, by kind (new, judged, ended, denied, dropped).", "kind"),
		kept:  d("flows_kept", "Flows that the agent remembers."),
		lost: d("flow_records_lost_total",
			"Records of the kernel that were lost because they came faster than they were read, by kind; denials go last.", "kind"),
		lostPackets: d("flow_packets_lost_total", "Packets that lost records would have stood for, by kind.", "kind"),
		stopped: d("flow_stopped_packets_total",
			"Packets that were denied or dropped, by reason and direction, as far as records told of them; strait_datapath_packets_total is exact.",
			"reason", "direction"),
		ringUsed: d("flow_ring_used_bytes", "Records of the kernel that are not read yet."),
		ringSize: d("flow_ring_size_bytes", "Room for records of the kernel. New and ended connections are told while half of it is free, denials to the brim."),
	}
}

func (c flowDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{c.flows, c.kept, c.lost, c.lostPackets, c.stopped, c.ringUsed, c.ringSize}
}

func (c flowDescs) collect(f localapi.FlowStatus, gauge gaugeFunc, counter counterFunc) {
	if !f.Enabled {
		return
	}
	for _, s := range f.Seen {
		counter(c.flows, s.Flows, s.Kind)
	}
	gauge(c.kept, float64(f.Kept))
	for _, l := range f.Lost {
		counter(c.lost, l.Records, l.Kind)
		counter(c.lostPackets, l.Packets, l.Kind)
	}
	for _, s := range f.Stopped {
		counter(c.stopped, s.Packets, s.Reason, s.Direction)
	}
	gauge(c.ringUsed, float64(f.RingUsed))
	gauge(c.ringSize, float64(f.RingSize))
}
