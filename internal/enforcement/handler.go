package enforcement

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"sync"
)

// Source is where a Handler has the report from.
type Source interface {
	Known() error
	Revision() string
	Report() Report
}

// Handler serves a node's report with an ETag: whoever has seen it already is answered 304. It is 503 while the source does not know.
func Handler(source Source) http.Handler {
	h := &handler{source: source}
	return http.HandlerFunc(h.serve)
}

type handler struct {
	source Source

	mu       sync.Mutex // guards what follows: the report as it was last made
	revision string
	tag      string
	body     []byte
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) {
	if err := h.source.Known(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	tag, body, err := h.current()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client has gone: nobody to tell
}

// current makes the report anew when its revision has changed. The tag is of the content: tables change without it as well.
func (h *handler) current() (tag string, body []byte, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	revision := h.source.Revision() // before the report: what comes between is in it, and makes it once more
	if h.tag != "" && revision == h.revision {
		return h.tag, h.body, nil
	}
	body, err = json.Marshal(h.source.Report())
	if err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256(body)
	h.revision, h.tag, h.body = revision, `"`+hex.EncodeToString(sum[:16])+`"`, body
	return h.tag, h.body, nil
}
