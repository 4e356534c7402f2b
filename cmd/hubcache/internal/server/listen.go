package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// listener is one listener of the server.
type listener struct {
	net.Listener
	side side
	tls  bool
}

// side is what a listener is for.
type side int

const (
	pullSide side = iota
	adminSide
	metricsSide // has /metrics alone, and is never systemd's
)

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

// listen opens the listeners. Sockets that systemd hands over for pulls take the place of
// the addresses for pulls in the settings, and those for admin of the ones for admin.
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
	srv.sockets = map[string][]string{}
	for name, raw := range given {
		if name != pullSocket && name != adminSocket {
			return nil, fmt.Errorf("socket %q from systemd: its unit needs FileDescriptorName=%s or FileDescriptorName=%s", name, pullSocket, adminSocket)
		}
		for _, l := range raw {
			if l != nil {
				srv.sockets[name] = append(srv.sockets[name], address(l))
			}
		}
	}
	srv.settings.Warn(overrule(srv.settings, srv.sockets)...)
	nets, err := srv.settings.AllowedClients()
	if err != nil {
		return nil, err
	}
	srv.gate = &gate{log: srv.log}
	srv.gate.set(nets)
	for _, part := range []struct {
		side  side
		name  string
		addrs []string
	}{{pullSide, pullSocket, srv.settings.Listen}, {adminSide, adminSocket, srv.settings.Admin.Listen}, {metricsSide, "", srv.settings.Metrics.Listen}} {
		raw := slices.DeleteFunc(given[part.name], func(l net.Listener) bool { return l == nil })
		if len(raw) == 0 {
			for _, addr := range part.addrs {
				l, err := listenOn(addr, part.side == adminSide)
				if err != nil {
					return ls, err
				}
				raw = append(raw, l)
			}
		}
		for _, l := range raw {
			if part.side == pullSide {
				l = gated{l, srv.gate}
			}
			// Not on unix sockets, which don't leave this machine.
			withTLS := srv.tls != nil && part.side == pullSide && l.Addr().Network() == "tcp"
			ls = append(ls, listener{l, part.side, withTLS})
		}
	}
	return ls, nil
}

// address is the address of a listener as the settings have it.
func address(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}

// listenOn opens one address. A unix socket that a killed server left is replaced.
func listenOn(addr string, admin bool) (net.Listener, error) {
	var l net.Listener
	var err error
	if path, isUnix := strings.CutPrefix(addr, "unix:"); isUnix {
		l, err = listenUnix(path, admin)
	} else {
		l, err = net.Listen("tcp", addr)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // the rest repeats the address
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w; is another hubcache running, or another registry?", err)
	}
	if err != nil {
		return nil, fmt.Errorf("can't listen on %s: %w", addr, err)
	}
	return l, nil
}

// listenUnix opens a unix socket. Its group may use an admin socket; everybody who may
// enter the folder may use one for pulls.
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
	mode := fs.FileMode(0o666)
	if admin {
		mode = 0o660
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
