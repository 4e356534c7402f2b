package admin

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

const (
	// listenersMost is how many may listen to the events at one time.
	listenersMost = 32
	// eventsEvery is how often the statistics are looked at while somebody listens.
	eventsEvery = time.Second
	// aliveEvery is how often a line goes out when nothing changes. A proxy between would take the
	// connection for a dead one.
	aliveEvery = 15 * time.Second
	// readWithin is how long a listener may take to read an event.
	readWithin = 10 * time.Second
)

// events are the statistics of the moment, made once for all who listen. Nothing is made while
// nobody does.
type events struct {
	mu        sync.Mutex // guards what follows; held while the document is made
	listeners int
	made      time.Time
	document  []byte // of GET /api/v1/stats, on one line
	key       []byte // the document without the uptime, which always changes
}

// enter reports whether one more may listen. If so, leave has to be called.
func (e *events) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listeners == listenersMost {
		return false
	}
	e.listeners++
	return true
}

func (e *events) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners--
}

// now returns the document, no older than a second.
func (e *events) now(now time.Time, stats func(time.Time) Stats) (document, key []byte, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.document != nil && now.Sub(e.made) < eventsEvery/2 {
		return e.document, e.key, nil
	}
	s := stats(now)
	if e.document, err = json.Marshal(s); err != nil {
		return nil, nil, err
	}
	s.UptimeSeconds = 0
	e.key, err = json.Marshal(s)
	e.made = now
	return e.document, e.key, err
}

// listen sends the statistics as server-sent events: at once, and then whenever they have changed,
// once a second at most. It ends when the listener leaves or reads too slowly, and when the
// server closes.
func (a *admin) listen(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // nginx would keep the events back
	if req.Method == http.MethodHead {
		return
	}
	if !a.events.enter() {
		h.Set("Retry-After", "30")
		refuse(http.StatusServiceUnavailable, "too many listen already").ServeHTTP(w, req)
		return
	}
	defer a.events.leave()
	tick := time.NewTicker(eventsEvery)
	defer tick.Stop()
	var last []byte
	var sent time.Time
	out := http.NewResponseController(w)
	for now := time.Now(); ; {
		document, key, err := a.events.now(now, a.document)
		if err != nil {
			return
		}
		event := []byte(nil)
		switch {
		case !bytes.Equal(key, last):
			event = append(append([]byte("event: stats\ndata: "), document...), "\n\n"...)
		case now.Sub(sent) >= aliveEvery:
			event = []byte(":\n\n")
		}
		if event != nil {
			out.SetWriteDeadline(time.Now().Add(readWithin))
			if _, err := w.Write(event); err != nil || out.Flush() != nil {
				return
			}
			last, sent = key, now
		}
		select {
		case now = <-tick.C:
		case <-req.Context().Done():
			return
		}
	}
}
