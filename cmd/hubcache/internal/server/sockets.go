package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// socketUnit is a socket of systemd that takes the place of addresses in the settings.
type socketUnit struct {
	name string // FileDescriptorName=
	unit string // of the Debian package and the NixOS module
	key  string // of the setting whose place it takes
}

// socketUnits are the sockets that a server takes from systemd.
func socketUnits() []socketUnit {
	return []socketUnit{
		{pullSocket, "hubcache-pull.socket", "listen"},
		{adminSocket, "hubcache-admin.socket", "admin.listen"},
	}
}

// addresses returns the setting that the socket takes the place of.
func (u socketUnit) addresses(s *settings.Loaded) *settings.List {
	if u.name == adminSocket {
		return &s.Admin.Listen
	}
	return &s.Listen
}

// overrule sets the addresses of s to those of the sockets that systemd has handed over, given by
// their names. It returns a warning for each setting that says something else and isn't merely
// the default.
func overrule(s *settings.Loaded, given map[string][]string) (warnings []string) {
	for _, u := range socketUnits() {
		addrs, source := given[u.name], s.Source(u.key)
		if len(addrs) == 0 {
			continue
		}
		if source != "" && !sameAddresses(*u.addresses(s), addrs) {
			warnings = append(warnings, differs(u, source, *u.addresses(s), addrs))
		}
		*u.addresses(s) = addrs
		s.SetSource(u.key, "systemd socket "+u.unit)
	}
	return warnings
}

func differs(u socketUnit, source string, set, addrs []string) string {
	return fmt.Sprintf("%s is %s (%s), but systemd's %s listens on %s, and that is what counts: 'hubcache config sockets --apply' changes the socket",
		u.key, strings.Join(set, ","), source, u.unit, strings.Join(addrs, ","))
}

// CheckSockets compares the settings with the sockets of this machine's systemd, and returns a
// warning for each that differs. It returns nothing where there is no systemd or no such socket.
func CheckSockets(ctx context.Context, s *settings.Loaded) (warnings []string) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil
	}
	for _, u := range socketUnits() {
		source := s.Source(u.key)
		if source == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // systemd may be busy; the check is worth no more
		out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=Listen", "--value", u.unit).Output()
		cancel()
		if addrs := listenStreams(string(out)); err == nil && len(addrs) > 0 && !sameAddresses(*u.addresses(s), addrs) {
			warnings = append(warnings, differs(u, source, *u.addresses(s), addrs))
		}
	}
	return warnings
}

// listenStreams reads what systemctl shows of Listen: "127.0.0.1:5000 (Stream)" in each line.
func listenStreams(shown string) (addrs []string) {
	for line := range strings.Lines(shown) {
		addr, ok := strings.CutSuffix(strings.TrimSpace(line), " (Stream)")
		if !ok {
			continue
		}
		if strings.HasPrefix(addr, "/") {
			addr = "unix:" + addr
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

// sameAddresses reports whether two lists have the same addresses, in any order.
func sameAddresses(a, b []string) bool {
	plain := func(addrs []string) (out []string) {
		for _, addr := range addrs {
			if host, port, err := net.SplitHostPort(addr); err == nil {
				if host == "" {
					host = "::" // as Go and systemd understand a port alone
				}
				if ip, err := netip.ParseAddr(host); err == nil {
					host = ip.Unmap().String()
				}
				addr = net.JoinHostPort(strings.ToLower(host), port)
			}
			out = append(out, addr)
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return slices.Equal(plain(a), plain(b))
}

// DropIn is a file that makes one of systemd's sockets listen where the settings say.
type DropIn struct {
	Unit string // the socket, like hubcache-pull.socket
	Path string
	Body string // "": there must be no such file, because the setting has its default
}

// DropIns returns the drop-ins for the sockets of the package, in the folder of units dir. It
// fails if an address is not one that systemd can listen on.
func DropIns(s *settings.Loaded, dir string) (all []DropIn, err error) {
	for _, u := range socketUnits() {
		d := DropIn{Unit: u.unit, Path: filepath.Join(dir, u.unit+".d", "hubcache.conf")}
		if s.Source(u.key) != "" {
			if d.Body, err = dropIn(u.key, *u.addresses(s)); err != nil {
				return nil, err
			}
		}
		all = append(all, d)
	}
	return all, nil
}

func dropIn(key string, addrs []string) (string, error) {
	var b strings.Builder
	b.WriteString("# Written by \"hubcache config sockets\" from " + key + " of the settings.\n[Socket]\nListenStream=\n")
	for _, addr := range addrs {
		if path, ok := strings.CutPrefix(addr, "unix:"); ok {
			addr = path
		} else if host, port, _ := net.SplitHostPort(addr); host == "" {
			addr = port
		} else if _, err := netip.ParseAddr(host); err != nil {
			return "", fmt.Errorf("%s: %s: systemd needs the address in numbers, like 10.0.0.2:%s", key, addr, port)
		}
		b.WriteString("ListenStream=" + strings.ReplaceAll(addr, "%", "%%") + "\n")
	}
	return b.String(), nil
}

// Write makes the file as it should be, or removes it, and reports whether that changed
// anything.
func (d DropIn) Write() (changed bool, err error) {
	was, err := os.ReadFile(d.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if string(was) == d.Body {
		return false, nil
	}
	if d.Body == "" {
		return true, os.Remove(d.Path)
	}
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o755); err != nil {
		return false, err
	}
	// systemd reads no file of that name, so a half written one does no harm.
	tmp := d.Path + ".new"
	if err := os.WriteFile(tmp, []byte(d.Body), 0o644); err != nil {
		return false, err
	}
	return true, os.Rename(tmp, d.Path)
}
