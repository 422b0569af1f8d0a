package cli

import (
	"strings"
	"unicode/utf8"
)

// style is how a text looks on a terminal with colours.
type style string

const (
	plain  style = ""
	bold   style = "1"
	faint  style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

func (a *app) paint(s style, text string) string {
	if !a.Color || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// column of a grid. A wide column is shown with -o wide, or when everything fits the terminal.
type column struct {
	title string
	wide  bool
	right bool // numbers
}

// cell is one field; its lines stand below each other.
type cell struct {
	text  string
	style style
	list  string // the text with listGap, once render has seen it
}

// grid is a table for people.
type grid struct {
	columns []column
	rows    [][]cell
	indent  string
}

func columns(titles ...string) []column {
	var out []column
	for _, t := range titles {
		c := column{title: t}
		if strings.HasPrefix(t, "+") {
			c.title, c.wide = t[1:], true
		}
		if strings.HasSuffix(c.title, "#") {
			c.title, c.right = strings.TrimSuffix(c.title, "#"), true
		}
		out = append(out, c)
	}
	return out
}

// add appends a row; a string is a plain cell.
func (g *grid) add(fields ...any) {
	row := make([]cell, len(g.columns))
	for i, f := range fields {
		switch f := f.(type) {
		case cell:
			row[i] = f
		case string:
			row[i] = cell{text: f}
		}
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	g.rows = append(g.rows, row)
}

const (
	gap       = "  "   // between columns
	listGap   = "\x1f" // between the words of a cell that may stand below each other
	lastLeast = 24     // columns that the last column keeps when its text is broken into lines,
	lastWide  = 40     // and when wide columns want its room
)

// render lays the grid out: columns that are empty in every row are left out, wide ones when they do not fit; then lists
// and the last column are broken into lines.
func (a *app) render(g *grid) string {
	g.replace(listGap, " ")
	show := make([]bool, len(g.columns))
	for i := range g.columns {
		show[i] = !g.empty(i)
	}
	if a.output != formatWide && (a.Width == 0 || g.total(show)-g.breakable(show, lastWide) > a.Width) {
		for i, c := range g.columns {
			show[i] = show[i] && !c.wide
		}
	}
	if a.Width > 0 && g.total(show) > a.Width {
		g.replace(listGap, "\n")
	}
	g.breakLast(show, a.Width)
	widths := g.widths()
	var b strings.Builder
	header := make([]cell, len(g.columns))
	for i, c := range g.columns {
		header[i] = cell{text: c.title, style: bold}
	}
	a.row(&b, g, header, widths, show)
	for _, r := range g.rows {
		a.row(&b, g, r, widths, show)
	}
	return b.String()
}

// replace decides how lists are printed; the list itself stays in the cell.
func (g *grid) replace(from, to string) {
	for _, r := range g.rows {
		for i := range r {
			if r[i].list == "" && strings.Contains(r[i].text, from) {
				r[i].list = r[i].text
			}
			if r[i].list != "" {
				r[i].text = strings.ReplaceAll(r[i].list, from, to)
			}
		}
	}
}

// total is the width of a line that shows these columns.
func (g *grid) total(show []bool) int {
	n := len(g.indent) - len(gap)
	for i, w := range g.widths() {
		if show[i] {
			n += w + len(gap)
		}
	}
	return n
}

// last returns the last column shown, -1 when there is none or it holds numbers.
func (g *grid) last(show []bool) int {
	last := -1
	for i := range show {
		if show[i] {
			last = i
		}
	}
	if last >= 0 && g.columns[last].right {
		return -1
	}
	return last
}

// breakable is how much narrower the last column can become, down to least, by breaking its text into lines.
func (g *grid) breakable(show []bool, least int) int {
	last := g.last(show)
	if last < 0 {
		return 0
	}
	return max(0, g.widths()[last]-least)
}

func (g *grid) breakLast(show []bool, width int) {
	over := g.total(show) - width
	if width == 0 || over <= 0 || over > g.breakable(show, lastLeast) {
		return
	}
	last := g.last(show)
	room := g.widths()[last] - over
	for _, r := range g.rows {
		if !strings.Contains(r[last].text, "\n") {
			r[last].text = wrap(r[last].text, room, "")
		}
	}
}

// renderOr lays the grid out, or says that there is nothing.
func (a *app) renderOr(g *grid, nothing string) string {
	if len(g.rows) == 0 {
		return nothing + "\n"
	}
	return a.render(g)
}

// empty reports whether an optional column says nothing in any row.
func (g *grid) empty(i int) bool {
	if len(g.rows) == 0 {
		return false
	}
	for _, r := range g.rows {
		if r[i].text != "-" {
			return false
		}
	}
	return true
}

func (g *grid) widths() []int {
	w := make([]int, len(g.columns))
	for i, c := range g.columns {
		w[i] = utf8.RuneCountInString(c.title)
		for _, r := range g.rows {
			for line := range strings.SplitSeq(r[i].text, "\n") {
				w[i] = max(w[i], utf8.RuneCountInString(line))
			}
		}
	}
	return w
}

func (a *app) row(b *strings.Builder, g *grid, row []cell, widths []int, show []bool) {
	height := 1
	for i, c := range row {
		if show[i] {
			height = max(height, 1+strings.Count(c.text, "\n"))
		}
	}
	for n := range height {
		line := g.indent
		pending := "" // blanks are written only when something follows
		for i, c := range row {
			if !show[i] {
				continue
			}
			text := ""
			if lines := strings.Split(c.text, "\n"); n < len(lines) {
				text = lines[n]
			}
			blanks := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if g.columns[i].right {
				pending, blanks = pending+blanks, ""
			}
			if text != "" {
				line += pending + a.paint(c.style, text)
				pending = ""
			}
			pending += blanks + gap
		}
		b.WriteString(line + "\n")
	}
}

// printed is the number of columns text takes on a terminal; colours take none.
func printed(text string) int {
	n := utf8.RuneCountInString(text)
	for {
		_, after, found := strings.Cut(text, "\x1b[")
		if !found {
			return n
		}
		code, rest, _ := strings.Cut(after, "m")
		n -= len("\x1b[") + len(code) + len("m")
		text = rest
	}
}

// wrap breaks text into lines of at most width, and puts indent before the second and later ones; width 0 leaves it whole.
func wrap(text string, width int, indent string) string {
	if width == 0 {
		return text
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case printed(line)+1+printed(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return strings.Join(append(lines, line), "\n"+indent)
}
