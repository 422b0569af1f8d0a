package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// flows is the line of strait status about flows. An agent that says nothing of them, an older one, has none.
func (v *screen) flows(f localapi.FlowStatus) {
	if !f.Enabled {
		return
	}
	text := fmt.Sprintf("%s/s; %d of %d kept", perSecond(f.PerSecond), f.Kept, f.Max)
	var lost []string
	for _, l := range f.Lost {
		if l.Records > 0 {
			lost = append(lost, fmt.Sprintf("%d %s", l.Records, l.Kind))
		}
	}
	if len(lost) == 0 {
		v.line("Flows", text+", none lost")
		return
	}
	v.line("Flows", text+"; "+v.paint(yellow, "lost for lack of room: "+strings.Join(lost, ", ")))
}

// perSecond has one digit where it matters.
func perSecond(n float64) string {
	if n >= 10 || n == 0 {
		return strconv.FormatFloat(n, 'f', 0, 64)
	}
	return strconv.FormatFloat(n, 'f', 1, 64)
}
