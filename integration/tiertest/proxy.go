package tiertest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a way to a server that can be made worse. It forwards what it can, until the test ends.
type Proxy struct {
	Addr string // host:port to connect to

	mu    sync.Mutex // guards what follows
	to    string
	delay time.Duration
	heal  chan struct{} // closed while bytes get through
	conns map[net.Conn]bool
}

// StartProxy starts a Proxy to the server at that address, which need not be there yet.
func StartProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), to: to, conns: map[net.Conn]bool{}, heal: make(chan struct{})}
	close(p.heal)
	t.Cleanup(func() {
		l.Close()
		p.Heal()
		p.mu.Lock()
		defer p.mu.Unlock()
		for c := range p.conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

// Delay holds each piece of an answer back for that long.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Partition lets nothing through in either direction until Heal, and ends no connection: packets are lost.
func (p *Proxy) Partition() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.heal:
		p.heal = make(chan struct{})
	default:
	}
}

// Heal ends Delay and Partition.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = 0
	select {
	case <-p.heal:
	default:
		close(p.heal)
	}
}

func (p *Proxy) state() (heal chan struct{}, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heal, p.delay
}

func (p *Proxy) keep(c net.Conn, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if open {
		p.conns[c] = true
		return
	}
	delete(p.conns, c)
	c.Close()
}

func (p *Proxy) serve(client net.Conn) {
	p.keep(client, true)
	defer p.keep(client, false)
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	p.keep(server, true)
	defer p.keep(server, false)
	done := make(chan struct{}, 2)
	go func() { p.forward(server, client, false); done <- struct{}{} }()
	go func() { p.forward(client, server, true); done <- struct{}{} }()
	<-done
}

func (p *Proxy) forward(to, from net.Conn, answer bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		heal, delay := p.state()
		<-heal
		if answer {
			time.Sleep(delay)
		}
		if _, failed := to.Write(buf[:n]); failed != nil || err != nil {
			return
		}
	}
}
