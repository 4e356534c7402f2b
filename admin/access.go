package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// VerbHeader has to be in every request that changes the cache; its value is "1". A foreign web
// page can't set it without asking first, and is told no.
const VerbHeader = "X-Hubcache-Admin"

// fault is an error with the status that answers it.
type fault struct {
	status int
	err    error
}

func (f fault) Error() string { return f.err.Error() }

// faultf makes a fault.
func faultf(status int, format string, args ...any) error {
	return fault{status, fmt.Errorf(format, args...)}
}

// verb is the handler of a request that changes the cache, or that costs much. An error is
// answered as JSON, with 500 if it is no fault, and must be returned before anything is written.
type verb func(w http.ResponseWriter, req *http.Request) error

// guarded lets only those use a verb who may, and logs one line for each request: who, what, and
// how it ended.
func (a *admin) guarded(v verb) http.Handler {
	return a.checkHost(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		began := time.Now()
		notes := []any{}
		req = req.WithContext(context.WithValue(req.Context(), notesKey{}, &notes))
		err := a.mayChange(req)
		if err == nil {
			err = v(w, req)
		}
		status := http.StatusOK
		if err != nil {
			status = http.StatusInternalServerError
			if f, ok := errors.AsType[fault](err); ok {
				status = f.status
			}
			if status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			refuse(status, err.Error()).ServeHTTP(w, req)
		}
		line := []any{"who", asker(req), "method", req.Method, "path", req.URL.RequestURI(), "status", status, "took_ms", time.Since(began).Milliseconds()}
		if err != nil {
			line = append(line, "error", err.Error())
		}
		a.Log.Info("admin request", append(line, notes...)...)
	}))
}

// notesKey is the context key of what a verb adds to its line of the log.
type notesKey struct{}

// note adds something to the line of the log that a verb leaves.
func note(req *http.Request, key string, value any) {
	if notes, ok := req.Context().Value(notesKey{}).(*[]any); ok {
		*notes = append(*notes, key, value)
	}
}

// mayChange says why a request may not use a verb; nil if it may.
func (a *admin) mayChange(req *http.Request) error {
	if req.Header.Get(VerbHeader) != "1" {
		return faultf(http.StatusForbidden, "requests that change the cache need the header %s: 1", VerbHeader)
	}
	if origin := req.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || !a.ownName(req, hostname(u.Host)) {
			return faultf(http.StatusForbidden, "this comes from a page of another site (Origin); the setting admin.hosts adds names of this one")
		}
	}
	if overUnix(req) {
		return nil
	}
	if a.Token != nil {
		bearer, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		if !ok {
			return faultf(http.StatusUnauthorized, "over TCP this needs the token of admin.token_file, as Authorization: Bearer")
		}
		if !a.Token(bearer) {
			return faultf(http.StatusUnauthorized, "this is not the token of admin.token_file")
		}
		return nil
	}
	if why := refusal(req, a.listeners()); why != "" {
		return faultf(http.StatusForbidden, "%s; or set admin.token_file", why)
	}
	return nil
}

// verbs is mayChange before a verb is used.
func (a *admin) verbs(req *http.Request) Verbs {
	switch {
	case overUnix(req):
		return Verbs{}
	case a.Token != nil:
		return Verbs{Token: true}
	}
	return Verbs{Refused: refusal(req, a.listeners())}
}

// listeners are the addresses of the admin listener.
func (a *admin) listeners() []string {
	if a.Settings == nil {
		return nil
	}
	return a.Settings().Admin
}

func overUnix(req *http.Request) bool {
	local, _ := req.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return local != nil && local.Network() == "unix"
}

// refusal says why a request is not told what isn't everybody's business; "" when it is. listeners
// are the addresses of this listener. A unix socket's permissions decide who may use it. Over TCP
// any user of the machine may ask, so that counts only if there is no unix socket. A request that
// a reverse proxy passes on comes from loopback, too.
func refusal(req *http.Request, listeners []string) string {
	if overUnix(req) {
		return ""
	}
	if at := slices.IndexFunc(listeners, func(l string) bool { return strings.HasPrefix(l, "unix:") }); at >= 0 {
		return "this is answered over " + listeners[at] + " only"
	}
	remote, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil || !remote.Addr().Unmap().IsLoopback() {
		return "this is answered on this machine only"
	}
	for name := range req.Header {
		if name == "Forwarded" || name == "Via" || strings.HasPrefix(name, "X-Forwarded-") {
			return "this is not answered through a proxy"
		}
	}
	return ""
}

// peerKey is the context key of the peer of a unix socket.
type peerKey struct{}

// ConnContext is for http.Server.ConnContext of the admin listener. It notes which user is at the
// other end of a unix socket, for the log.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, fmt.Sprintf("uid %d (process %d)", peer.Uid, peer.Pid))
}

// asker says who sends a request: the user at the other end of a unix socket, or an address.
func asker(req *http.Request) string {
	if peer, ok := req.Context().Value(peerKey{}).(string); ok {
		return peer
	}
	return req.RemoteAddr
}
