package endpoint_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/nstest"
)

// BenchmarkAddDel is the agent's part of ADD and DEL on the real kernel: everything but the start of the plugin's process.
func BenchmarkAddDel(b *testing.B) {
	n := newNode(b)
	n.CoolDown = 0
	n.start()
	netns := nstest.NetNS(b)
	conf := json.RawMessage(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"strait","type":"strait-cni","socket":%q}`, n.Socket))
	call := func(c wire.Command) {
		req := wire.Request{Command: c, ContainerID: "bench", IfName: "eth0", NetNS: netns, Config: conf}
		if _, err := wire.Call(n.Socket, req, wire.Timeout); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		call(wire.Add)
		b.StopTimer()
		call(wire.Del)
		b.StartTimer()
	}
}
