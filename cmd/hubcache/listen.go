package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// listener is one of the server's.
type listener struct {
	net.Listener
	admin bool
	tls   bool
}

func (l listener) String() string {
	addr := l.Addr().String()
	switch {
	case l.Addr().Network() == "unix":
		return "unix:" + addr
	case l.tls:
		return "https://" + addr
	}
	return "http://" + addr
}

// The names of sockets that systemd hands over (FileDescriptorName=).
const (
	pullSocket  = "pull"
	adminSocket = "admin"
)

// listen opens the listeners, or takes them from systemd: then those of the settings are
// passed over, for pulls and admin apart.
func (srv *server) listen() (ls []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
		}
	}()
	given, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("sockets from systemd: %w", err)
	}
	for name := range given {
		if name != pullSocket && name != adminSocket {
			return nil, fmt.Errorf("socket %q from systemd: its unit needs FileDescriptorName=%s or FileDescriptorName=%s", name, pullSocket, adminSocket)
		}
	}
	nets, err := srv.settings.AllowedClients()
	if err != nil {
		return nil, err
	}
	srv.gate = &gate{log: srv.log}
	srv.gate.set(nets)
	for _, side := range []struct {
		name  string
		addrs []string
		admin bool
	}{{pullSocket, srv.settings.Listen, false}, {adminSocket, srv.settings.Admin.Listen, true}} {
		raw := slices.DeleteFunc(given[side.name], func(l net.Listener) bool { return l == nil })
		if len(raw) == 0 {
			for _, addr := range side.addrs {
				l, err := listenOn(addr, side.admin)
				if err != nil {
					return ls, err
				}
				raw = append(raw, l)
			}
		}
		for _, l := range raw {
			if !side.admin {
				l = gated{l, srv.gate}
			}
			// A unix socket is this machine's own: plain.
			withTLS := srv.tls != nil && !side.admin && l.Addr().Network() == "tcp"
			ls = append(ls, listener{l, side.admin, withTLS})
		}
	}
	return ls, nil
}

// listenOn opens one address. The socket of a unix path that a killed server left is
// replaced.
func listenOn(addr string, admin bool) (net.Listener, error) {
	var l net.Listener
	var err error
	if path, isUnix := strings.CutPrefix(addr, "unix:"); isUnix {
		l, err = listenUnix(path, admin)
	} else {
		l, err = net.Listen("tcp", addr)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // it repeats the address
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w; is another hubcache running, or another registry?", err)
	}
	if err != nil {
		return nil, fmt.Errorf("can't listen on %s: %w", addr, err)
	}
	return l, nil
}

func listenUnix(path string, admin bool) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, errors.New("another server does")
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == fs.ModeSocket {
		os.Remove(path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	mode := fs.FileMode(0o666) // who reaches the folder may pull
	if admin {
		mode = 0o660
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// gate lets clients of some networks in; of all when there are none.
type gate struct {
	log  *slog.Logger
	nets atomic.Pointer[[]netip.Prefix]
}

func (g *gate) set(nets []netip.Prefix) { g.nets.Store(&nets) }

func (g *gate) open(addr net.Addr) bool {
	nets := *g.nets.Load()
	if len(nets) == 0 || addr.Network() == "unix" {
		return true
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return false
	}
	ip := ap.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// gated closes connections that the gate doesn't let in.
type gated struct {
	net.Listener
	gate *gate
}

func (l gated) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.gate.open(c.RemoteAddr()) {
			return c, err
		}
		l.gate.log.Debug("connection refused: its address is not in listen_allow", "client", c.RemoteAddr().String())
		c.Close()
	}
}

// keyPair is a certificate that is read again when its file changes.
type keyPair struct {
	certFile, keyFile string

	mu      sync.Mutex // guards what follows
	cert    *tls.Certificate
	file    fs.FileInfo // certFile, as it was read
	checked time.Time
}

// lookEvery is how often a handshake looks whether the certificate's file has changed.
const lookEvery = 5 * time.Second

func newKeyPair(certFile, keyFile string) (*keyPair, error) {
	k := &keyPair{certFile: certFile, keyFile: keyFile}
	return k, k.load()
}

func (k *keyPair) load() error {
	fi, err := os.Stat(k.certFile)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cert, k.file, k.checked = &cert, fi, time.Now()
	return nil
}

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	due := time.Since(k.checked) > lookEvery
	if due {
		k.checked = time.Now()
	}
	was := k.file
	k.mu.Unlock()
	if due {
		// Where all files have one time, as in a Nix store, another file is another inode.
		if fi, err := os.Stat(k.certFile); err == nil && !(os.SameFile(fi, was) && fi.ModTime().Equal(was.ModTime())) {
			k.load() // half replaced, the old pair goes on; the next look tries again
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cert == nil {
		return nil, errors.New("no certificate")
	}
	return k.cert, nil
}
