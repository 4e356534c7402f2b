package hubtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// reply is an answer before it is played: faults may still bend it.
type reply struct {
	status int
	header http.Header
	body   io.ReaderAt // nil: no body
	offset int64       // of the first byte to send, in body
	size   int64       // how many bytes to send
}

func textReply(status int, contentType, body string) *reply {
	return &reply{
		status: status,
		header: http.Header{"Content-Type": {contentType}},
		body:   bytes.NewReader([]byte(body)),
		size:   int64(len(body)),
	}
}

func jsonReply(status int, v any) *reply {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return textReply(status, "application/json", string(b))
}

// errorReply is the registry API's error body.
func errorReply(status int, code, message string, detail any) *reply {
	return jsonReply(status, map[string]any{
		"errors": []any{map[string]any{"code": code, "message": message, "detail": detail}},
	})
}

// exchange is one request on its way to its reply.
type exchange struct {
	hub    *Hub
	opts   Options
	face   Face
	w      http.ResponseWriter
	r      *http.Request
	target target
	grant  grant // of the bearer token; zero without a known one
	known  bool  // the bearer token is one of ours
	entry  *Entry
	rule   *Rule // that fired; may be nil
	tricks tricks
}

// target is what a request is about.
type target struct {
	kind, repository, reference string
}

func (h *Hub) serve(face Face, w http.ResponseWriter, r *http.Request) {
	x := &exchange{hub: h, opts: h.options(), face: face, w: w, r: r}
	if face == Registry && r.URL.Path == "/ledger" && x.opts.LedgerPage {
		h.serveLedger(w, r)
		return
	}
	x.identify()
	h.ledger.start(x.entry)
	defer h.ledger.leave()
	defer h.ledger.end(x.entry)
	if x.rule = h.fire(x.entry); x.rule != nil {
		x.tricks = x.rule.tricks
		h.ledger.note(func() { x.entry.Fault = true })
	}
	if !x.wait() {
		panic(http.ErrAbortHandler) // the client has left, or the Hub closes
	}
	switch t := x.tricks; {
	case t.drop != nil:
		x.cut(*t.drop)
	case t.raw != "":
		x.playRaw(t.raw)
	default:
		x.play(x.answer())
	}
}

// identify fills in who asks for what.
func (x *exchange) identify() {
	account := ""
	switch x.face {
	case Registry:
		x.target = parseRegistryPath(x.r.URL.Path)
		x.grant, x.known = x.hub.bearer(x.r)
		account = x.grant.account
	case Token:
		x.target, account = parseTokenRequest(x.r)
	case CDN:
		x.target, account = parseCDNRequest(x.r)
	}
	header := x.r.Header.Clone()
	header.Del("Authorization")
	query := x.r.URL.RawQuery
	if x.face == CDN {
		query = ""
	}
	remote, _, _ := net.SplitHostPort(x.r.RemoteAddr)
	x.entry = &Entry{
		Face: x.face, Method: x.r.Method, Path: x.r.URL.Path, Query: query,
		Kind: x.target.kind, Repository: x.target.repository, Reference: x.target.reference,
		Range: x.r.Header.Get("Range"), Account: account, Remote: remote,
		HasAuth: x.r.Header.Get("Authorization") != "", Header: header, Started: time.Now(),
	}
}

// wait spends the latencies and the faults that come before the headers.
func (x *exchange) wait() bool {
	d := x.opts.Latency + x.tricks.delay
	connOf(x.r).first.Do(func() { d += x.opts.ConnLatency })
	if !x.sleep(d) {
		return false
	}
	return !x.tricks.hang || x.await()
}

// sleep reports whether it slept for the whole time.
func (x *exchange) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.r.Context().Done():
	case <-x.hub.closed:
	}
	return false
}

// await reports whether the rule was released, and not the client gone or the Hub closed.
func (x *exchange) await() bool {
	select {
	case <-x.rule.released:
		return true
	case <-x.r.Context().Done():
	case <-x.hub.closed:
	}
	return false
}

func (x *exchange) answer() *reply {
	if t := x.tricks; t.reply != nil {
		return t.reply(x)
	}
	switch x.face {
	case Registry:
		return x.registry()
	case Token:
		return x.token()
	default:
		return x.cdn()
	}
}

// play sends the reply, bent by the faults.
func (x *exchange) play(rep *reply) {
	if t := x.tricks; t.location != nil {
		t.location(rep.header)
	}
	rep.size = max(0, rep.size+x.tricks.grow)
	x.sendHeader(rep)
	if x.r.Method != http.MethodHead {
		x.sendBody(rep)
	}
}

func (x *exchange) sendHeader(rep *reply) {
	header := x.w.Header()
	for name, values := range rep.header {
		header[name] = values
	}
	header.Set("Date", x.opts.now().UTC().Format(http.TimeFormat))
	if !x.tricks.chunked && header.Get("Content-Length") == "" {
		header.Set("Content-Length", strconv.FormatInt(rep.size, 10))
	}
	x.hub.ledger.note(func() { x.entry.Status = rep.status })
	x.w.WriteHeader(rep.status)
	if x.tricks.chunked {
		header.Del("Content-Length")
		x.flush()
	}
}

// tail is held back to the end of a body. It is smaller than net/http's buffer, so it leaves
// only when the handler has returned, after the ledger has been written.
const tail = 1 << 10

func (x *exchange) sendBody(rep *reply) {
	pace := x.pacers()
	if x.face == CDN && x.opts.FirstByte > 0 {
		x.flush()
		if !x.sleep(x.opts.FirstByte) {
			panic(http.ErrAbortHandler)
		}
	}
	buf := make([]byte, x.chunk())
	for sent := int64(0); sent < rep.size; {
		n := x.step(rep, sent, int64(len(buf)))
		if n == 0 {
			continue // a stall that was released
		}
		x.fill(rep, buf[:n], sent)
		if len(pace) > 0 {
			x.flush() // the piece before: each leaves when its time has come
		}
		if !x.pause(pace, n) {
			panic(http.ErrAbortHandler)
		}
		wrote, err := x.w.Write(buf[:n])
		sent += int64(wrote)
		x.hub.ledger.note(func() { x.entry.BodyBytes += int64(wrote) })
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// step says how many bytes come next: none when a fault's turn has come and gone.
func (x *exchange) step(rep *reply, sent, most int64) int64 {
	n := rep.size - sent
	if n > tail {
		n -= tail
	}
	n = min(n, most)
	if c := x.tricks.cutAt; c != nil && *c < rep.size {
		if sent >= *c {
			x.flush()
			x.cut(x.tricks.cutHow)
		}
		n = min(n, *c-sent)
	}
	if s := x.tricks.stallAt; s != nil && *s < rep.size {
		if sent == *s {
			x.flush()
			if !x.await() {
				panic(http.ErrAbortHandler)
			}
			x.tricks.stallAt = nil
			return 0
		}
		n = min(n, *s-sent)
	}
	return n
}

// fill puts the bytes from sent on into p; past the end of the body there are only dots.
func (x *exchange) fill(rep *reply, p []byte, sent int64) {
	at := rep.offset + sent
	n, _ := rep.body.ReadAt(p, at)
	for i := n; i < len(p); i++ {
		p[i] = '.'
	}
	if f := x.tricks.flipAt; f != nil && *f >= at && *f < at+int64(len(p)) {
		p[*f-at] ^= 0xff
	}
}

func (x *exchange) flush() {
	if http.NewResponseController(x.w).Flush() != nil {
		panic(http.ErrAbortHandler)
	}
}

// playRaw writes bytes that net/http would not, and closes the connection.
func (x *exchange) playRaw(raw string) {
	x.hub.ledger.note(func() { x.entry.Status = x.tricks.rawStatus })
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	io.WriteString(conn, raw)
}

// ending is how a connection is cut.
type ending int

const (
	closing   ending = iota // FIN: an unexpected end of file
	resetting               // RST
)

// cut ends the connection under the feet of net/http.
func (x *exchange) cut(how ending) {
	conn := connOf(x.r).Conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if how == resetting {
		switch c := conn.(type) {
		case *net.TCPConn:
			c.SetLinger(0)
		case *memConn:
			c.reset()
		}
	}
	x.hub.ledger.end(x.entry) // before the client can notice
	conn.Close()
	panic(http.ErrAbortHandler)
}

// connState is what a request knows of its connection.
type connState struct {
	net.Conn
	first sync.Once
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &connState{Conn: c})
}

func connOf(r *http.Request) *connState { return r.Context().Value(connKey{}).(*connState) }

func (h *Hub) serveLedger(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodDelete:
		h.ResetLedger()
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Query().Has("json"):
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(h.Ledger())
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, h.Ledger().String()+"\n")
	}
}
