package policy

// Forecast says how many rows the kernel needs.
type Forecast struct {
	Entries int // of programs: answers to identities, those to all others included
	Tables  int
	Ports   int // rows of all tables
}

// Forecast counts the rows the program needs for the identities in use, each of which is there once. Tables that other programs have as well
// are counted.
func (p *Program) Forecast(identities []Identity) Forecast {
	var f Forecast
	known := map[ID]bool{}
	count := func(e Entry) {
		f.Entries++
		if e.Table != nil && !known[e.Table.ID] {
			known[e.Table.ID] = true
			f.Tables++
			f.Ports += len(e.Table.Rows)
		}
	}
	for _, way := range []Way{Egress, Ingress} {
		other := p.Other(way)
		count(other)
		for i := range identities {
			if e := p.Entry(way, identities[i].Kind, identities[i].Matches); !e.Equal(other) {
				count(e)
			}
		}
	}
	return f
}
