package cli

import (
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
)

const (
	pictureWidth = 80 // where the terminal does not say
	pictureMost  = 110
	pictureLeast = 48
	laneAt       = 5 // column of the first lane
)

// ink is one character of a picture.
type ink struct {
	r rune
	s style
}

// picture is what diagrams are drawn on; it grows downwards.
type picture struct {
	width int
	rows  [][]ink
}

func (p *picture) put(x, y int, s style, text string) {
	for len(p.rows) <= y {
		p.rows = append(p.rows, slices.Repeat([]ink{{r: ' '}}, p.width))
	}
	for _, r := range text {
		if x >= 0 && x < p.width {
			p.rows[y][x] = ink{r, s}
		}
		x++
	}
}

// box draws a frame from the row top to the row bottom, with a title in its upper edge. faded: it was not reached.
func (p *picture) box(x, top, right, bottom int, title string, faded bool) {
	line, s := "─", plain
	if faded {
		line, s = "╌", faint
	}
	edge := strings.Repeat(line, right-x-1)
	p.put(x, top, s, "┌"+edge+"┐")
	p.put(x, bottom, s, "└"+edge+"┘")
	for y := top + 1; y < bottom; y++ {
		p.put(x, y, s, "│")
		p.put(right, y, s, "│")
	}
	if title != "" {
		look := bold
		if faded {
			look = faint
		}
		at := laneAt + 2 // a lane may come in before it
		p.put(at, top, look, " "+shortened(title, right-at-4)+" ")
	}
}

func shortened(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:max(0, most-1)]) + "…"
	}
	return text
}

func (a *app) ink(p *picture) string {
	var b strings.Builder
	for _, row := range p.rows {
		end := len(row)
		for end > 0 && row[end-1].r == ' ' {
			end--
		}
		for i := 0; i < end; {
			j := i
			var run []rune
			for ; j < end && row[j].s == row[i].s; j++ {
				run = append(run, row[j].r)
			}
			b.WriteString(a.paint(row[i].s, string(run)))
			i = j
		}
		b.WriteString("\n")
	}
	return b.String()
}

// laneLine is a line of one direction inside a node.
type laneLine struct {
	mark, text string
	look       style
}

// drawn is a node in a picture: what happens on the way down, and on the way up from the bottom.
type drawn struct {
	node       string
	down, up   *explain.Leg
	downs, ups []laneLine
	goesOn     bool // down
	goesBack   bool // up
}

// diagram draws a path: nodes below each other, the way there downwards on the left, the way back upwards on the right.
func (a *app) diagram(out explained) string {
	width := a.Width
	if width == 0 {
		width = pictureWidth
	}
	d := &drawing{picture: picture{width: min(pictureMost, max(pictureLeast, width))}, out: out}
	text := a.paint(bold, wrap(headText(out), d.width, "  ")) + "\n\n"
	if mirrored(out) {
		d.draw(out.There, out.Back)
		text += a.ink(&d.picture)
	} else {
		d.draw(out.There, nil)
		text += a.ink(&d.picture) + "\n" + a.paint(bold, "The answer takes another way:") + "\n\n"
		back := &drawing{picture: picture{width: d.width}, out: explained{Source: out.Destination, Destination: out.Source, Path: explain.Path{There: out.Back, Conclusion: out.Conclusion}}}
		back.draw(out.Back, nil)
		text += a.ink(&back.picture)
	}
	return text + "\n" + a.paint(verdictLook(out.Conclusion.Verdict), wrap(concluded(out.Conclusion), d.width, "")) + "\n"
}

// mirrored reports whether the answer comes by the nodes that the packet came by.
func mirrored(out explained) bool {
	if len(out.Back) > len(out.There) {
		return false
	}
	for i, l := range out.Back {
		if l.Node != out.There[len(out.There)-1-i].Node {
			return false
		}
	}
	return true
}

type drawing struct {
	picture
	out explained
	y   int
	two bool // lanes
}

func (d *drawing) second() int { return laneAt + (d.width-laneAt-1)/2 }

func (d *drawing) room() int {
	if d.two {
		return d.second() - laneAt - 4
	}
	return d.width - laneAt - 6
}

func (d *drawing) draw(there, back []explain.Leg) {
	d.two = len(back) > 0
	var nodes []drawn
	for i := range there {
		n := drawn{node: there[i].Node, down: &there[i], goesOn: i+1 < len(there)}
		if j := len(there) - 1 - i; j < len(back) {
			n.up, n.goesBack = &back[j], j+1 < len(back)
			if j+1 == len(back) && i == 0 {
				n.goesBack = arrives(back[j]) || leaves(back[j])
			}
		}
		n.goesOn = n.goesOn || leaves(there[i]) || arrives(there[i])
		n.downs = slices.Concat(d.hops(n.down, n.node)...)
		ups := d.hops(n.up, n.node)
		slices.Reverse(ups)
		n.ups = slices.Concat(ups...)
		nodes = append(nodes, n)
	}
	if d.out.Source.Kind == endOutside {
		d.end(0, d.width-1, "outside", label(d.out.Source), false)
		d.join(0, nodes[0].goesBack && nodes[0].up != nil, true)
		d.wire(nodes[0].down.Asked, nodes[0].up != nil && nodes[0].goesBack)
	}
	for i := range nodes {
		d.node(nodes, i)
		if i+1 < len(nodes) {
			d.wire(nodes[i+1].down.Asked, nodes[i].up != nil)
		}
	}
	d.beyond(there[len(there)-1], nodes[len(nodes)-1].up != nil)
}

// beyond is what lies behind the last node that was asked: the outside, or an end that was not reached.
func (d *drawing) beyond(last explain.Leg, answered bool) {
	to := d.out.Destination
	switch {
	case leaves(last):
		d.wire(localapi.ExplainQuestion{Entry: localapi.EntryNet}, answered)
		top := d.y
		d.end(0, d.width-1, "outside", d.target(last), false)
		d.join(top, answered, false)
	case !arrives(last) && to.Node != "" && to.Node != last.Node:
		d.y++
		d.end(0, d.width-1, "node "+to.Node, label(to)+d.missed(), true)
	}
}

// target is whom a packet is for at the end of a leg.
func (d *drawing) target(l explain.Leg) string {
	to := l.Part.Packet.Target
	if l.Part.Packet.Protocol == "ICMP" { // whose identifier is no port
		return to.Addr().String()
	}
	return to.String()
}

// missed says of an end that the packet does not get to it, or that nobody could tell.
func (d *drawing) missed() string {
	if d.out.Conclusion.Verdict == explain.Unknown {
		return ": not known whether it is reached"
	}
	return ": not reached"
}

// arrives reports whether a leg ends with who the packet is for.
func arrives(l explain.Leg) bool {
	hops := hopsOf(l)
	return l.Part != nil && l.Part.Next == nil && l.Part.Arrived != nil && len(hops) > 0 && hops[len(hops)-1].Outcome == localapi.HopDelivered
}

func leaves(l explain.Leg) bool { return l.Part != nil && l.Part.Next != nil && l.Part.Next.Node == "" }

// label is an end in its box.
func label(e explainEnd) string {
	text := e.String()
	if e.Name == "world" {
		text = "somebody"
	}
	if e.Name != "" {
		text += "  " + e.Address.String()
	}
	return text
}

// end is a box of one line.
func (d *drawing) end(x, right int, title, text string, faded bool) {
	d.box(x, d.y, right, d.y+2, title, faded)
	look := plain
	if faded {
		look = faint
	}
	d.put(x+3, d.y+1, look, shortened(text, right-x-5))
	d.y += 3
}

// join lets the lanes touch the box that was drawn from the row top on: at its lower edge when it is above them, else at its upper one.
func (d *drawing) join(top int, answered, above bool) {
	y, down, up := top, "▼", "┴"
	if above {
		y, down, up = top+2, "┬", "▲"
	}
	d.put(laneAt, y, plain, down)
	if answered {
		d.put(d.second(), y, plain, up)
	}
}

// wire is what is between two boxes.
func (d *drawing) wire(q localapi.ExplainQuestion, answered bool) {
	line, name := "│", "network"
	if q.Entry == localapi.EntryTunnel {
		line, name = "║", "tunnel"
	}
	d.put(laneAt, d.y, plain, line)
	d.put(laneAt+2, d.y, faint, name)
	if answered {
		d.put(d.second(), d.y, plain, line)
		d.put(d.second()+2, d.y, faint, name)
	}
	d.y++
}

// node draws one node with the ends that are on it.
func (d *drawing) node(nodes []drawn, i int) {
	n, last := nodes[i], i+1 == len(nodes)
	inside, right := 2, d.width-3
	top := d.y
	d.y++
	if i == 0 && d.out.Source.Kind != endOutside {
		at := d.y
		d.end(inside, right, "", label(d.out.Source), false)
		if n.downs != nil || n.goesOn {
			d.join(at, n.up != nil && n.goesBack, true)
		}
	}
	d.lanes(n)
	if last {
		to, reached := label(d.out.Destination), arrives(*n.down)
		if reached && n.down.Part.Arrived.Pod != "" {
			to = "pod " + n.down.Part.Arrived.Pod + "  " + d.target(*n.down)
		} else if reached {
			to = "processes of the node  " + d.target(*n.down)
		}
		at := d.y
		switch {
		case reached:
			d.end(inside, right, "", to, false)
			d.join(at, n.up != nil, false)
		case d.out.Destination.Node == n.node && !leaves(*n.down):
			d.end(inside, right, "", to+d.missed(), true)
		}
	}
	d.box(0, top, d.width-1, d.y, "node "+n.node, false)
	d.cross(nodes, i, top)
	d.y++
}

// cross lets the lanes through the edges of a node.
func (d *drawing) cross(nodes []drawn, i, top int) {
	n, last := nodes[i], i+1 == len(nodes)
	if i > 0 || d.out.Source.Kind == endOutside {
		d.put(laneAt, top, plain, "▼")
		if n.up != nil && n.goesBack {
			d.put(d.second(), top, plain, "┴")
		}
	}
	if !last || leaves(*n.down) {
		d.put(laneAt, d.y, plain, "┬")
		if n.up != nil {
			d.put(d.second(), d.y, plain, "▲")
		}
	}
}

// lanes draws what happens on a node in both directions.
func (d *drawing) lanes(n drawn) {
	height := max(len(n.downs), len(n.ups)) + 1
	for y := range height {
		left, right := laneLine{}, laneLine{}
		switch {
		case y < len(n.downs):
			left = n.downs[y]
		case n.goesOn:
			left.mark = "│"
		}
		empty := height - len(n.ups)
		switch {
		case n.up == nil:
		case y >= empty:
			right = n.ups[y-empty]
		case n.goesBack:
			right.mark = "│"
		}
		for x, l := range map[int]laneLine{laneAt: left, d.second(): right} {
			d.put(x, d.y, l.look, l.mark)
			d.put(x+2, d.y, l.look, l.text)
		}
		d.y++
	}
}

// hops are the lines of each hop of a leg, without those that the box of an end stands for.
func (d *drawing) hops(l *explain.Leg, node string) (out [][]laneLine) {
	if l == nil {
		return nil
	}
	if l.Part == nil {
		return append(out, d.lines("?", "not asked", yellow))
	}
	for _, h := range l.Part.Hops {
		place := h.Place
		if place == "node "+node {
			place = "the node's stack"
		}
		switch h.Outcome {
		case localapi.HopDelivered:
		case localapi.HopOn:
			switch {
			case strings.HasPrefix(place, endPod+" "):
			case place == "socket":
				out = append(out, d.lines("●", h.Text, plain))
			default:
				out = append(out, d.lines("●", place, plain))
			}
		case localapi.HopWarning:
			out = append(out, d.lines("!", place+": "+h.Reason, yellow))
		case localapi.HopDropped, localapi.HopRefused:
			label, _ := outcomeLook(h.Outcome)
			out = append(out, d.lines("✗", label+" at "+place+": "+h.Reason, red))
		default:
			out = append(out, d.lines("?", place+": "+h.Reason, yellow))
		}
	}
	return out
}

// lines break the text of a hop into lines of the lane.
func (d *drawing) lines(mark, text string, look style) (out []laneLine) {
	for i, line := range strings.Split(wrap(text, d.room(), ""), "\n") {
		switch {
		case i > 0 && look == plain:
			mark = "│"
		case i > 0:
			mark = " "
		}
		out = append(out, laneLine{mark, shortened(line, d.room()), look})
	}
	return out
}
