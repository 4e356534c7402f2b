package server

import (
	"os"
	"os/user"
	"path"
	"strconv"
	"strings"

	"github.com/hubcache/hubcache/admin"
)

// show prepares what GET /api/v1/settings answers: where the server really listens, and what it
// runs with.
func (srv *server) show(ls []listener) {
	doc := admin.Settings{User: strconv.Itoa(os.Geteuid()), Unit: unit()}
	if u, err := user.LookupId(doc.User); err == nil {
		doc.User = u.Username
	}
	doc.Listen, doc.Admin = addresses(ls, pullSide), addresses(ls, adminSide)
	srv.shown.Store(&doc)
	srv.showSettings()
}

// addresses are those of the listeners of one side; never nil.
func addresses(ls []listener, of side) []string {
	all := []string{}
	for _, l := range ls {
		if l.side == of {
			all = append(all, l.String())
		}
	}
	return all
}

// showSettings puts the settings that run into what is answered.
func (srv *server) showSettings() {
	doc := admin.Settings{}
	if was := srv.shown.Load(); was != nil {
		doc = *was
	}
	doc.File, doc.Settings, doc.PasswordFile = srv.settings.File, nil, ""
	if hub := srv.connections[0]; hub.cred != nil {
		doc.PasswordFile = hub.cred.Path()
	}
	for _, s := range srv.settings.Show() {
		doc.Settings = append(doc.Settings, admin.Setting(s))
	}
	srv.shown.Store(&doc)
}

// unit is the systemd unit that this process runs in, from its control group; "" for none.
func unit() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	name := path.Base(strings.TrimSpace(string(b)))
	if !strings.HasSuffix(name, ".service") || os.Getenv("INVOCATION_ID") == "" {
		return ""
	}
	return name
}
