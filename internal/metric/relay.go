package metric

import "github.com/prometheus/client_golang/prometheus"

// Relay is the metrics of the relay.
type Relay struct {
	nodes   *prometheus.GaugeVec
	peers   prometheus.Gauge
	streams prometheus.Gauge
	flows   prometheus.Counter
	lost    prometheus.Counter
}

// NewRelay registers the relay's metrics.
func NewRelay(reg prometheus.Registerer) *Relay {
	r := &Relay{
		nodes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_relay_nodes", Help: "Nodes whose flows the relay tells, by state (connected, unavailable).",
		}, []string{"state"}),
		peers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strait_relay_peers_connected", Help: "1 while an agent tells the relay which nodes there are; else it goes on with those it knows.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strait_relay_streams", Help: "Requests for flows that are being answered.",
		}),
		flows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_relay_flows_total", Help: "Flows that clients were told.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_relay_lost_flows_total",
			Help: "Flows that clients were told are missing: they read too slowly, or the kernel had no room. What two clients miss counts twice.",
		}),
	}
	reg.MustRegister(r.nodes, r.peers, r.streams, r.flows, r.lost)
	r.Nodes(0, 0)
	return r
}

// Nodes notes how many nodes are connected, and how many are not.
func (r *Relay) Nodes(connected, unavailable int) {
	r.nodes.WithLabelValues("connected").Set(float64(connected))
	r.nodes.WithLabelValues("unavailable").Set(float64(unavailable))
}

// Peers notes whether an agent tells which nodes there are.
func (r *Relay) Peers(connected bool) {
	r.peers.Set(0)
	if connected {
		r.peers.Set(1)
	}
}

// Stream notes a request for flows; end notes that it has been answered.
func (r *Relay) Stream() (end func()) {
	r.streams.Inc()
	return r.streams.Dec
}

// Flow notes a flow that a client was told.
func (r *Relay) Flow() { r.flows.Inc() }

// Lost notes that a client was told of so many missing flows.
func (r *Relay) Lost(n uint64) { r.lost.Add(float64(n)) }
