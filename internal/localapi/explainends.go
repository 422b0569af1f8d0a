package localapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// Ends are the rows that the words for the ends of a path may mean: who has such a name or address. A word without a namespace is one of the
// namespace "default", or a node.
type Ends struct {
	Node     string    `json:"node"`  // who answers
	Nodes    []Node    `json:"nodes"` // with those that the pods are on, and the one that answers
	Pods     []PodRow  `json:"pods"`
	Services []Service `json:"services"` // without their backends
}

const endsPath = "/v1/ends"

// mostWords is how many words are looked up at once.
const mostWords = 16

func handleEnds(mux *http.ServeMux, p Provider) {
	handle(mux, "GET "+endsPath, p.Ends != nil, func(r *http.Request) (any, error) {
		words := r.URL.Query()["word"]
		if len(words) > mostWords {
			return nil, BadQuestion("%d words: want at most %d", len(words), mostWords)
		}
		return p.Ends(r.Context(), words)
	})
}

// Ends asks who has one of these names or addresses.
func (c *Client) Ends(ctx context.Context, words []string) (Ends, error) {
	return fetch[Ends](ctx, c, fmt.Sprintf("%s?%s", endsPath, url.Values{"word": words}.Encode()))
}
