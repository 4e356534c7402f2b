package admin

import (
	"net/http"
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

// settings answers with what the server runs with. Told is who may use the unix socket, or has the
// token; where there is neither, whoever is on this machine.
func (a *admin) settings(w http.ResponseWriter, req *http.Request) {
	s := a.Settings()
	bearer, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if why := refusal(req, s.Admin); why != "" && (a.Token == nil || !a.Token(bearer)) {
		refuse(http.StatusForbidden, why).ServeHTTP(w, req)
		return
	}
	s.Schema = Schema
	writeJSON(w, http.StatusOK, s)
}
