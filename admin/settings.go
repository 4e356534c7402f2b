package admin

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Settings is the document of GET /api/v1/settings: what the server runs with, whatever flags,
// file or environment it was started with. No setting is a secret: there are only names of files
// with secrets.
type Settings struct {
	Schema       int       `json:"schema"`
	File         string    `json:"file"`          // the settings file; "": none
	Listen       []string  `json:"listen"`        // the addresses of the pull API: http://…, https://… or unix:…
	Admin        []string  `json:"admin"`         // the addresses of the admin listener, in the same form
	PasswordFile string    `json:"password_file"` // the file with the access token, as the server opens it; "": none
	User         string    `json:"user"`          // that the server runs as: a name, or a number that has none
	Unit         string    `json:"unit"`          // of systemd that the server runs in; "": none
	Settings     []Setting `json:"settings"`      // as in "hubcache config show --json"
}

// Setting is one setting of the server.
type Setting struct {
	Key    string `json:"key"`    // with its section: "upstream.url"
	Value  string `json:"value"`  // as text
	Source string `json:"source"` // "default", "file /etc/hubcache/config.yaml:3", "flag --budget", …
}

// settings answers with what the server runs with. Only somebody who may use the unix socket is
// told; where there is none, whoever is on this machine.
func (a *admin) settings(w http.ResponseWriter, req *http.Request) {
	s := a.Settings()
	if why := refusal(req, s.Admin); why != "" {
		refuse(http.StatusForbidden, why).ServeHTTP(w, req)
		return
	}
	s.Schema = Schema
	writeJSON(w, http.StatusOK, s)
}

// refusal says why a request is not told what isn't everybody's business; "" when it is. listeners
// are the addresses of this listener. A unix socket's permissions decide who may use it. Over TCP
// any user of the machine may ask, so that counts only if there is no unix socket. A request that
// a reverse proxy passes on comes from loopback, too.
func refusal(req *http.Request, listeners []string) string {
	local, _ := req.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local != nil && local.Network() == "unix" {
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
