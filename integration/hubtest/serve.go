package hubtest

import (
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

// service answers the requests to one Face: the registry, the token service or the CDN. Both
// methods are called concurrently.
type service interface {
	// identify fills in what the request is about and who makes it.
	identify(*request)
	// respond makes the response. Of the faults it obeys only IgnoreRange and ExpiredURL;
	// exchange applies the others.
	respond(*request) *response
}

// request is what a service must know to answer.
type request struct {
	r       *http.Request
	opts    Options // in force when it arrived
	face    Face
	base    string // URL of the face
	remote  string // the client's address without its port
	effects effects

	target  target
	account string // "" is anonymous

	// Only the registry sets these.
	knownToken bool  // the bearer token was issued by this Hub; it may have expired
	grant      grant // of the bearer token; zero unless knownToken
}

// target is what a request is about.
type target struct {
	kind, repository, reference string // as in Entry
}

// response is one that has not been sent. Faults may still change it.
type response struct {
	status int
	header http.Header
	body   io.ReaderAt
	offset int64 // of the first byte to send, in body
	size   int64 // how many bytes to send
}

func textResponse(status int, contentType, body string) *response {
	return &response{
		status: status,
		header: http.Header{"Content-Type": {contentType}},
		body:   bytesOf(body),
		size:   int64(len(body)),
	}
}

func jsonResponse(status int, v any) *response {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return textResponse(status, "application/json", string(b))
}

// errorResponse has the registry API's error body.
func errorResponse(status int, code, message string, detail any) *response {
	return jsonResponse(status, map[string]any{
		"errors": []any{map[string]any{"code": code, "message": message, "detail": detail}},
	})
}

// dispatcher takes the requests to all faces.
type dispatcher struct {
	settings *settings
	network  *Network
	services map[Face]service
	faults   *faults
	ledger   *ledger
	total    pacer         // for Options.TotalBandwidth
	closed   chan struct{} // closed by Hub.Close
}

func (d *dispatcher) handler(face Face) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { d.serve(face, w, r) })
}

func (d *dispatcher) serve(face Face, w http.ResponseWriter, r *http.Request) {
	q := &request{r: r, opts: d.settings.get(), face: face, base: d.network.URL(face)}
	if face == Registry && r.URL.Path == "/ledger" && q.opts.LedgerPage {
		d.ledger.ServeHTTP(w, r)
		return
	}
	q.remote, _, _ = net.SplitHostPort(r.RemoteAddr)
	d.services[face].identify(q)
	x := &exchange{request: q, w: w, entry: newEntry(q), ledger: d.ledger, total: &d.total, closed: d.closed}
	d.ledger.start(x.entry)
	defer d.ledger.finish()
	defer d.ledger.end(x.entry) // before finish, after which Wait returns
	if x.rule = d.faults.fire(x.entry); x.rule != nil {
		q.effects = x.rule.effects
		d.ledger.update(func() { x.entry.Fault, x.entry.Rule = true, x.rule.match.Name })
	}
	x.run(d.services[face])
}

func newEntry(q *request) *Entry {
	header := q.r.Header.Clone()
	header.Del("Authorization")
	query := q.r.URL.RawQuery
	if q.face == CDN {
		query = "" // it has the signature, a secret
	}
	return &Entry{
		Face: q.face, Method: q.r.Method, Path: q.r.URL.Path, Query: query,
		Kind: q.target.kind, Repository: q.target.repository, Reference: q.target.reference,
		Range: q.r.Header.Get("Range"), Account: q.account, Remote: q.remote,
		HasAuth: q.r.Header.Get("Authorization") != "", Header: header, Started: time.Now(),
	}
}

// exchange is one request and its response. Where the response can't go on, its methods
// panic with http.ErrAbortHandler, which makes net/http close the connection.
type exchange struct {
	request *request
	w       http.ResponseWriter
	entry   *Entry
	rule    *Rule // that fired; may be nil
	ledger  *ledger
	total   *pacer
	closed  chan struct{}
}

func (x *exchange) run(s service) {
	if !x.wait() {
		panic(http.ErrAbortHandler) // the client has left, or the Hub is being closed
	}
	switch e := x.request.effects; { // in the order that Inject promises
	case e.drop != nil:
		x.cut(*e.drop)
	case e.raw != "":
		x.sendRaw(e.raw)
	case e.response != nil:
		x.send(e.response(x.request))
	default:
		x.send(s.respond(x.request))
	}
}

// wait waits for Latency, ConnLatency (first request of a connection), Delay and Hang. It
// reports false when the client leaves or the Hub is closed.
func (x *exchange) wait() bool {
	d := x.request.opts.Latency + x.request.effects.delay
	connOf(x.request.r).first.Do(func() { d += x.request.opts.ConnLatency })
	if !x.sleep(d) {
		return false
	}
	return !x.request.effects.hang || x.awaitRelease()
}

// sleep reports false when the client leaves or the Hub is closed before the time is over.
func (x *exchange) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.request.r.Context().Done():
	case <-x.closed:
	}
	return false
}

// awaitRelease waits until the rule is released. It reports false when the client leaves or
// the Hub is closed before.
func (x *exchange) awaitRelease() bool {
	select {
	case <-x.rule.released:
		return true
	case <-x.request.r.Context().Done():
	case <-x.closed:
	}
	return false
}

// send sends the response, changed by the faults.
func (x *exchange) send(resp *response) {
	if e := x.request.effects; e.location != nil {
		e.location(resp.header)
	}
	resp.size = max(0, resp.size+x.request.effects.grow)
	x.sendHeader(resp)
	if x.request.r.Method != http.MethodHead {
		x.sendBody(resp)
	}
}

func (x *exchange) sendHeader(resp *response) {
	header, chunked := x.w.Header(), x.request.effects.chunked
	for name, values := range resp.header {
		header[name] = values
	}
	header.Set("Date", x.request.opts.now().UTC().Format(http.TimeFormat))
	if chunked {
		header.Del("Content-Length")
	} else if header.Get("Content-Length") == "" { // Status may have set another one
		header.Set("Content-Length", strconv.FormatInt(resp.size, 10))
	}
	x.ledger.update(func() { x.entry.Status = resp.status }) // before the client can see it
	x.w.WriteHeader(resp.status)
	if chunked && x.request.r.Method != http.MethodHead {
		x.flush() // before any body: net/http gives a short one a length of its own otherwise
	}
}

// lastPiece is the most that the last write of a body has. It is less than net/http's 2 KiB
// buffer, so the body's last byte stays there until the handler has returned, and by then the
// ledger is complete.
const lastPiece = 1 << 10

func (x *exchange) sendBody(resp *response) {
	if resp.size == 0 {
		return // a flush would send the whole response before the ledger is complete
	}
	limits := x.newLimits()
	if x.request.face == CDN && x.request.opts.FirstByte > 0 {
		x.flush()
		if !x.sleep(x.request.opts.FirstByte) {
			panic(http.ErrAbortHandler)
		}
	}
	buf := make([]byte, pieceSize(limits))
	for sent := int64(0); sent < resp.size; {
		n := x.nextPiece(resp, sent, int64(len(buf)))
		if n == 0 {
			continue // a stall that was released
		}
		x.fill(resp, buf[:n], sent)
		if len(limits) > 0 {
			// The piece written last has waited its time: send it. This one stays in net/http's
			// buffer until the next round, and the last one until the handler has returned
			// (see lastPiece).
			x.flush()
		}
		if !x.sleep(reserveAll(limits, n)) {
			panic(http.ErrAbortHandler)
		}
		wrote, err := x.w.Write(buf[:n])
		sent += int64(wrote)
		x.ledger.update(func() { x.entry.BodyBytes += int64(wrote) })
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// nextPiece returns how many bytes to send next. Where a fault cuts the body at this position,
// it doesn't return. Where one stalls it, it waits for the release and returns 0.
func (x *exchange) nextPiece(resp *response, sent, most int64) int64 {
	n := resp.size - sent
	if n > lastPiece {
		n -= lastPiece // keep lastPiece for the end
	}
	n = min(n, most)
	e := &x.request.effects
	if c := e.cutAt; c != nil && *c < resp.size {
		if sent >= *c {
			x.flush()
			x.cut(e.cutHow)
		}
		n = min(n, *c-sent)
	}
	if s := e.stallAt; s != nil && *s < resp.size {
		if sent >= *s {
			x.flush()
			if !x.awaitRelease() {
				panic(http.ErrAbortHandler)
			}
			e.stallAt = nil
			return 0
		}
		n = min(n, *s-sent)
	}
	return n
}

// fill reads len(p) bytes of the body into p, from position sent of the response. What the fault
// Longer adds is the next bytes of the blob, and dots where the blob has ended. It also
// applies FlipByte.
func (x *exchange) fill(resp *response, p []byte, sent int64) {
	at := resp.offset + sent
	n, err := resp.body.ReadAt(p, at)
	if err != nil && err != io.EOF {
		panic(http.ErrAbortHandler)
	}
	for i := n; i < len(p); i++ {
		p[i] = '.'
	}
	if f := x.request.effects.flipAt; f != nil && *f >= at && *f < at+int64(len(p)) {
		p[*f-at] ^= 0xff
	}
}

func (x *exchange) flush() {
	if http.NewResponseController(x.w).Flush() != nil {
		panic(http.ErrAbortHandler)
	}
}

// sendRaw writes bytes that net/http would not write, and closes the connection. It closes
// the connection early when the Hub is closed, because http.Server.Close doesn't close a
// hijacked connection, and the client may have stopped reading.
func (x *exchange) sendRaw(raw string) {
	x.ledger.update(func() { x.entry.Status = x.request.effects.rawStatus })
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	written := make(chan struct{})
	defer close(written)
	go func() {
		select {
		case <-x.closed:
			conn.Close()
		case <-written:
		}
	}()
	x.ledger.end(x.entry) // before the client can notice
	io.WriteString(conn, raw)
}

// ending is how a connection is cut.
type ending int

const (
	closing   ending = iota // FIN: an unexpected end of file
	resetting               // RST
)

// cut closes the TCP connection or pipe itself, below TLS, so that no close_notify and no end
// of the body is sent; then it aborts the handler. It doesn't return.
func (x *exchange) cut(how ending) {
	conn := connOf(x.request.r).Conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if how == resetting {
		switch c := conn.(type) {
		case *net.TCPConn:
			c.SetLinger(0)
		case *pipeConn:
			c.reset()
		}
	}
	x.ledger.end(x.entry) // before the client can notice
	conn.Close()
	panic(http.ErrAbortHandler)
}

// connState is a connection and whether it has had its first response.
type connState struct {
	net.Conn
	first sync.Once // for Options.ConnLatency
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &connState{Conn: c})
}

// connOf panics for a request of a server without withConn.
func connOf(r *http.Request) *connState { return r.Context().Value(connKey{}).(*connState) }

// pacer reserves time for bytes at a given rate. The zero value is ready for use.
type pacer struct {
	mu   sync.Mutex // guards next
	next time.Time  // when the bytes reserved so far have passed
}

// maxLag is how much lost time a pacer makes up for. Timers fire late; if that time were lost,
// every 10 ms piece would take longer and the rate would be too low. After a pause, up to
// maxLag's worth of bytes passes at once. 50 ms is more than the delay of a timer on a busy
// machine, and too little for a test of bandwidth to notice.
const maxLag = 50 * time.Millisecond

// reserve returns how long to wait until n more bytes have passed at rate bytes a second. The
// result may be negative: don't wait.
func (p *pacer) reserve(n, rate int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.next.IsZero() {
		p.next = now
	} else if least := now.Add(-maxLag); p.next.Before(least) {
		p.next = least
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return p.next.Sub(now)
}

// limit is a bandwidth limit on a body.
type limit struct {
	pacer *pacer
	rate  int64 // bytes a second
}

// newLimits returns the limits for the body of this exchange. Call it once per body: the limit
// of one connection starts anew. Only the CDN has limits, because only it sends large bodies.
func (x *exchange) newLimits() []limit {
	if x.request.face != CDN {
		return nil
	}
	var all []limit
	if rate := x.request.opts.Bandwidth; rate > 0 {
		all = append(all, limit{&pacer{}, rate})
	}
	if rate := x.request.opts.TotalBandwidth; rate > 0 {
		all = append(all, limit{x.total, rate})
	}
	return all
}

// pieceSize is how many bytes are written at once: what passes in 10 ms where there is a
// limit. Without one it is 64 KiB, a compromise between the number of calls for a large body
// and the memory for many connections.
func pieceSize(limits []limit) int64 {
	n := int64(64 << 10)
	for _, l := range limits {
		n = min(n, max(l.rate/100, 1))
	}
	return n
}

// reserveAll reserves time for n bytes in every pacer, and returns how long to wait to keep
// within all limits. Call it once per piece.
func reserveAll(limits []limit, n int64) time.Duration {
	var d time.Duration
	for _, l := range limits {
		d = max(d, l.pacer.reserve(n, l.rate))
	}
	return d
}
