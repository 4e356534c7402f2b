package hubtest

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Pipe is like net.Pipe, but that the bytes pass by Copy.
func Pipe() (near, far net.Conn) {
	there, back := make(chan passing), make(chan passing)
	n := &pipeEnd{in: back, out: there, closed: make(chan struct{})}
	f := &pipeEnd{in: there, out: back, closed: make(chan struct{})}
	n.other, f.other = f.closed, n.closed
	return n, f
}

// passing is what a writer has for the other end.
type passing struct {
	bytes []byte
	taken chan<- int // how many of them a reader has taken
}

// pipeEnd is one end of a pipe.
type pipeEnd struct {
	in, out chan passing
	closing sync.Once
	closed  chan struct{} // by Close
	other   chan struct{} // closed by the other end's

	writing         sync.Mutex // so that a Write is whole
	readBy, writeBy deadline
}

func (e *pipeEnd) Read(p []byte) (int, error) {
	late := e.readBy.passed()
	switch {
	case isClosed(e.closed):
		return 0, io.ErrClosedPipe
	case isClosed(e.other):
		return 0, io.EOF
	case isClosed(late):
		return 0, os.ErrDeadlineExceeded
	}
	select {
	case b := <-e.in:
		n := Copy(p, b.bytes)
		b.taken <- n
		return n, nil
	case <-e.closed:
		return 0, io.ErrClosedPipe
	case <-e.other:
		return 0, io.EOF
	case <-late:
		return 0, os.ErrDeadlineExceeded
	}
}

func (e *pipeEnd) Write(p []byte) (n int, err error) {
	e.writing.Lock()
	defer e.writing.Unlock()
	late, taken := e.writeBy.passed(), make(chan int)
	if isClosed(late) && !isClosed(e.closed) && !isClosed(e.other) {
		return 0, os.ErrDeadlineExceeded
	}
	for once := true; once || len(p) > 0; once = false {
		if isClosed(e.closed) || isClosed(e.other) {
			return n, io.ErrClosedPipe
		}
		select {
		case e.out <- passing{p, taken}:
			m := <-taken
			n, p = n+m, p[m:]
		case <-e.closed:
			return n, io.ErrClosedPipe
		case <-e.other:
			return n, io.ErrClosedPipe
		case <-late:
			return n, os.ErrDeadlineExceeded
		}
	}
	return n, nil
}

func (e *pipeEnd) Close() error {
	e.closing.Do(func() { close(e.closed) })
	return nil
}

func (e *pipeEnd) LocalAddr() net.Addr  { return pipeAddr{} }
func (e *pipeEnd) RemoteAddr() net.Addr { return pipeAddr{} }

func (e *pipeEnd) SetDeadline(t time.Time) error {
	e.readBy.set(t)
	e.writeBy.set(t)
	return nil
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error  { e.readBy.set(t); return nil }
func (e *pipeEnd) SetWriteDeadline(t time.Time) error { e.writeBy.set(t); return nil }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// deadline is a time until which something may wait. The zero value never passes.
type deadline struct {
	mu    sync.Mutex // guards what follows
	late  chan struct{}
	timer *time.Timer // closes late; nil: there is no time
}

// passed returns what is closed at that time, also when it is changed meanwhile.
func (d *deadline) passed() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late == nil {
		d.late = make(chan struct{})
	}
	return d.late
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	stopped := d.timer == nil || d.timer.Stop()
	d.timer = nil
	if d.late == nil || !stopped || isClosed(d.late) {
		if d.late != nil && !stopped {
			<-d.late // the timer has fired and closes it
		}
		d.late = make(chan struct{})
	}
	late := d.late
	switch left := time.Until(t); {
	case t.IsZero():
	case left <= 0:
		close(late)
	default:
		d.timer = time.AfterFunc(left, func() { close(late) })
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
