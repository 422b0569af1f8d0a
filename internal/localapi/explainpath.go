package localapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

const (
	explainPath = "/v1/explain"
	// explainLimit is the size of the largest question that is read, in bytes.
	explainLimit = 64 << 10
)

func handleExplain(mux *http.ServeMux, p Provider) {
	handle(mux, "POST "+explainPath, p.Explain != nil, func(r *http.Request) (any, error) {
		q, err := ReadExplainQuestion(io.LimitReader(r.Body, explainLimit))
		if err != nil {
			return nil, err
		}
		return p.Explain(r.Context(), q)
	})
}

// Explain asks for the node's part of a path.
func (c *Client) Explain(ctx context.Context, q ExplainQuestion) (ExplainPart, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return ExplainPart{}, fmt.Errorf("ask agent for %s: %w", explainPath, err)
	}
	return send[ExplainPart](ctx, c, http.MethodPost, explainPath, bytes.NewReader(body))
}
