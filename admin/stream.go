package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// stream answers with a line of JSON for each event, while the work goes on. The last line is
// {"done": true, "error": …}; without it the client knows that it has not seen the end.
type stream struct {
	w   http.ResponseWriter
	enc *json.Encoder
}

// last is the last line of a stream.
type last struct {
	Done  bool    `json:"done"`
	Error *string `json:"error"` // null: all went well
}

// newStream begins the answer. After it, errors can only be told in the last line.
func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	return &stream{w: w, enc: json.NewEncoder(w)}
}

// sendWithin is how long a client may take to read one event. Without a bound, one that has stopped
// would keep the work waiting.
const sendWithin = time.Minute

// send writes one event at once. Its error means that the client has left, or reads nothing.
func (s *stream) send(event any) error {
	_ = http.NewResponseController(s.w).SetWriteDeadline(time.Now().Add(sendWithin)) // where there is no connection, nothing can stop it
	return errors.Join(s.enc.Encode(event), http.NewResponseController(s.w).Flush())
}

// end writes the last line.
func (s *stream) end(err error) {
	l := last{Done: true}
	if err != nil {
		text := err.Error()
		l.Error = &text
	}
	s.send(l) // an error means that the client has left
}
