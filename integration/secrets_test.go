//go:build integration

package integration

import (
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// secretSearch collects what hubcache writes and sends, and searches it for secrets.
type secretSearch struct {
	t   *testing.T
	hub *hubtest.Hub

	mu   sync.Mutex
	seen map[string]string // where → what was written or sent there
}

func (w *secretSearch) add(where, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[where] += "\n" + what
}

// get makes a request and adds the answer with its headers. It returns the status, or 0 if the
// connection failed.
func (w *secretSearch) get(url string) int {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	a, err := request(ctx, http.MethodGet, url)
	if err != nil && a.Status == 0 {
		w.t.Logf("GET %s: %v", url, err)
	}
	if len(a.Body) < 64<<10 { // without layers
		w.add("answer of "+url, fmt.Sprint(a.Status, a.Header, string(a.Body)))
	}
	return a.Status
}

// folder adds all files of a folder.
func (w *secretSearch) folder(dir string) {
	w.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		w.add(path, path+string(b))
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// admin adds all pages of the admin listener, and what the kernel says of the process.
func (w *secretSearch) admin(s *server) {
	w.t.Helper()
	for _, path := range []string{"/", "/metrics", "/healthz", "/readyz", "/api/v1/stats", "/api/v1/settings", "/api/v1/images", "/api/v1/pins", "/debug/vars", "/debug/pprof/cmdline"} {
		w.get("http://" + s.Admin + path)
	}
	for _, name := range []string{"cmdline", "environ", "comm", "status"} {
		path := fmt.Sprintf("/proc/%d/%s", s.PID, name)
		b, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		w.add(path, string(b))
	}
}

// check fails the test for each secret that is found, plain or encoded.
func (w *secretSearch) check() {
	w.t.Helper()
	secrets := map[string]string{"the access token": labPAT}
	if n := len(w.hub.Secrets()); n < 2*len(secretFaults) {
		w.t.Errorf("the Hub gave out only %d tokens and signatures", n)
	}
	for i, s := range w.hub.Secrets() {
		secrets[fmt.Sprintf("token or signature %d", i)] = s
	}
	pair := []byte(labUser + ":" + labPAT)
	for i, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		secrets[fmt.Sprintf("the token as Basic credentials, encoding %d", i)] = enc.EncodeToString(pair)
		secrets[fmt.Sprintf("the token in base64, encoding %d", i)] = enc.EncodeToString([]byte(labPAT))
	}
	secrets["the token in a query"] = url.QueryEscape(string(pair))
	secrets["the query of a signed URL"] = "verify="
	for where, what := range w.seen {
		for name, secret := range secrets {
			if i := strings.Index(what, secret); i >= 0 {
				w.t.Errorf("%s is in the %s: …%q…", name, where, what[max(0, i-80):min(len(what), i+len(secret)+20)])
			}
		}
	}
}

// secretFaults are faults after which an error message might contain a secret.
var secretFaults = []struct {
	at    string // "cdn", "token", or "manifests" or "blobs" at the registry
	fault hubtest.Fault
	alone bool // the server makes no upstream requests for a while after it
}{
	{at: "cdn", fault: hubtest.Drop()},
	{at: "cdn", fault: hubtest.Reset()},
	{at: "cdn", fault: hubtest.CutAfter(1 << 20)},
	{at: "cdn", fault: hubtest.Status(500, "no")},
	{at: "cdn", fault: hubtest.ExpiredURL()},
	{at: "cdn", fault: hubtest.RedirectLoop()},
	{at: "cdn", fault: hubtest.FlipByte(100)},
	{at: "cdn", fault: hubtest.Shorter(100)},
	{at: "cdn", fault: hubtest.HTML()},
	{at: "cdn", fault: hubtest.Raw(200, "HTTP/1.1 huh\r\n\r\n")},
	{at: "blobs", fault: hubtest.EditRedirect(func(u *url.URL) { u.Host = "127.0.0.1:1" })},
	{at: "blobs", fault: hubtest.EditRedirect(func(u *url.URL) { u.Host = "cdn.invalid" })},
	{at: "blobs", fault: hubtest.EditRedirect(func(u *url.URL) { u.Scheme = "ftp" })},
	{at: "blobs", fault: hubtest.EditRedirect(func(u *url.URL) { u.User = url.UserPassword("u", "verify=p") })},
	{at: "cdn", fault: hubtest.HAP429(), alone: true},
	{at: "manifests", fault: hubtest.Drop(), alone: true},
	{at: "manifests", fault: hubtest.Status(500, "no"), alone: true},
	{at: "manifests", fault: hubtest.Status(401, "no", `Www-Authenticate: Bearer realm="http://127.0.0.1:1/token",service="x"`), alone: true},
	{at: "manifests", fault: hubtest.TooManyRequests(), alone: true},
	{at: "token", fault: hubtest.Drop(), alone: true},
	{at: "token", fault: hubtest.HTML(), alone: true},
	{at: "token", fault: hubtest.Status(500, "no"), alone: true},
	{at: "token", fault: hubtest.Status(401, `{"details":"incorrect username or password"}`), alone: true},
}

// TestSecretsStayInside causes all kinds of failures with the log at level debug, and searches
// all that the server writes and sends for the access token, bearer tokens and signed URLs.
func TestSecretsStayInside(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	w := &secretSearch{t: t, hub: hub, seen: map[string]string{}}
	good := hub.AddImage("library/good", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 4<<20)})
	if err := pullImage(t.Context(), s.URL, good, ""); err != nil {
		t.Fatal(err)
	}
	match := map[string]hubtest.Match{"cdn": {Face: hubtest.CDN}, "blobs": {Face: hubtest.Registry, Kind: "blobs"},
		"manifests": {Face: hubtest.Registry, Kind: "manifests"}, "token": {Face: hubtest.Token}}
	var together sync.WaitGroup // faults that need not be alone
	for i, f := range secretFaults {
		img := hub.AddImage(fmt.Sprintf("library/fault%d", i), "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 4<<20)})
		m := match[f.at]
		m.Repository = img.Repository
		rule := hub.Inject(m, f.fault)
		fail := func() {
			w.get(s.URL + "/v2/" + img.Repository + "/manifests/1")
			for _, b := range img.Blobs() {
				w.get(s.URL + "/v2/" + img.Repository + "/blobs/" + b.Digest.String())
			}
			if rule.Hits() == 0 {
				t.Errorf("no request had fault %d, at %s", i, f.at)
			}
		}
		if f.alone {
			together.Wait()
			fail()
			w.admin(s)
			s.Restart() // without a cool-down for the next fault
		} else {
			together.Go(fail)
		}
	}
	together.Wait()
	w.admin(s)
	hub.ClearFaults()
	hub.Set(func(o *hubtest.Options) { o.Accounts[0].PAT = "another" }) // revoked
	hub.RevokeTokens()
	w.get(s.URL + "/v2/library/unknown/manifests/1")
	w.get(s.URL + "/v2/library/good/manifests/2")
	w.admin(s)
	w.add("configuration", s.Command("config", "show"))
	w.add("table", s.Command("stats"))
	hub.Close()
	w.get(s.URL + "/v2/library/unknown/manifests/1")
	w.admin(s)
	s.Kill()
	w.folder(s.Data)
	w.add("log", s.Log())
	w.check()
}
