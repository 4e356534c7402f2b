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

// TestPullsUseTheAccount pulls when the anonymous quota of the address is gone: every
// manifest GET must be made with a token of the account's.
func TestPullsUseTheAccount(t *testing.T) {
	hub := startHub(t, hubtest.Options{AnonymousLimit: 1})
	s := startServer(t, serverOptions{Hub: hub})
	hub.SetUsed("", 1)
	spec := hubtest.ImageSpec{Layers: hubtest.Layers(2, 1<<20), Platforms: []string{"linux/amd64", "linux/arm64"}}
	gets := 0
	for i := range 5 {
		img := hub.AddImage(fmt.Sprintf("library/app%d", i), "1", spec)
		gets += 1 + len(img.Manifests)
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Error(err)
		}
	}
	isGET := func(e hubtest.Entry) bool {
		return e.Kind == "manifests" && e.Method == http.MethodGet && e.Status != http.StatusUnauthorized
	}
	if got := hub.Ledger().Count(isGET); got != gets {
		t.Errorf("%d manifest GETs for %d manifests", got, gets)
	}
	for _, e := range hub.Ledger().Filter(isGET) {
		if e.Account != labUser || e.Status != http.StatusOK {
			t.Errorf("not with the account's token: %s", e)
		}
	}
	if used := hub.Used(labUser); used != gets {
		t.Errorf("the account has used %d pulls, want %d", used, gets)
	}
	if used := hub.Used(""); used > 1 {
		t.Errorf("%d anonymous pulls", used-1)
	}
}

// secretWatch collects what hubcache lets out, to look through it for secrets.
type secretWatch struct {
	t   *testing.T
	hub *hubtest.Hub

	mu   sync.Mutex
	seen map[string]string // what came out, by where
}

func (w *secretWatch) see(where, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[where] += "\n" + what
}

// ask makes a request and keeps the answer, headers too. It returns the status; 0 is a
// connection that was cut.
func (w *secretWatch) ask(url string) int {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	a, err := request(ctx, http.MethodGet, url)
	if err != nil && a.Status == 0 {
		w.t.Logf("GET %s: %v", url, err)
	}
	if len(a.Body) < 64<<10 { // not layers
		w.see("answer of "+url, fmt.Sprint(a.Status, a.Header, string(a.Body)))
	}
	return a.Status
}

func (w *secretWatch) directory(dir string) {
	w.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		w.see(path, path+string(b))
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// admin asks the admin listener for all it tells, and the kernel about the process.
func (w *secretWatch) admin(s *server) {
	w.t.Helper()
	for _, path := range []string{"/", "/metrics", "/healthz", "/readyz", "/api/v1/stats", "/api/v1/images", "/api/v1/pins", "/debug/vars", "/debug/pprof/cmdline"} {
		w.ask("http://" + s.Admin + path)
	}
	for _, name := range []string{"cmdline", "environ", "comm", "status"} {
		path := fmt.Sprintf("/proc/%d/%s", s.PID, name)
		b, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		w.see(path, string(b))
	}
}

// check fails the test for each secret that is found anywhere, as it is or encoded.
func (w *secretWatch) check() {
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
		secrets[fmt.Sprintf("its Basic form %d", i)] = enc.EncodeToString(pair)
		secrets[fmt.Sprintf("its base64 form %d", i)] = enc.EncodeToString([]byte(labPAT))
	}
	secrets["its form in a query"] = url.QueryEscape(string(pair))
	secrets["a signed URL's query"] = "verify="
	for where, what := range w.seen {
		for name, secret := range secrets {
			if i := strings.Index(what, secret); i >= 0 {
				w.t.Errorf("%s is in the %s: …%q…", name, where, what[max(0, i-80):min(len(what), i+len(secret)+20)])
			}
		}
	}
}

// secretFaults are occasions for an error that quotes too much.
var secretFaults = []struct {
	at    string // CDN, token service, or manifests or blobs at the registry
	fault hubtest.Fault
	alone bool // the server asks nobody anything for a while
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

// TestSecretsStayInside lets go wrong what can, logging all there is to log, and looks for
// the access token, the bearer tokens and the signed URLs in everything that comes out.
func TestSecretsStayInside(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	w := &secretWatch{t: t, hub: hub, seen: map[string]string{}}
	good := hub.AddImage("library/good", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 4<<20)})
	if err := pullImage(t.Context(), s.URL, good, ""); err != nil {
		t.Fatal(err)
	}
	match := map[string]hubtest.Match{"cdn": {Face: hubtest.CDN}, "blobs": {Face: hubtest.Registry, Kind: "blobs"},
		"manifests": {Face: hubtest.Registry, Kind: "manifests"}, "token": {Face: hubtest.Token}}
	var together sync.WaitGroup
	for i, f := range secretFaults {
		img := hub.AddImage(fmt.Sprintf("library/fault%d", i), "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 4<<20)})
		m := match[f.at]
		m.Repository = img.Repository
		rule := hub.Inject(m, f.fault)
		spoil := func() {
			w.ask(s.URL + "/v2/" + img.Repository + "/manifests/1")
			for _, b := range img.Blobs() {
				w.ask(s.URL + "/v2/" + img.Repository + "/blobs/" + b.Digest.String())
			}
			if rule.Hits() == 0 {
				t.Errorf("fault %d, at %s, befell nobody", i, f.at)
			}
		}
		if f.alone {
			together.Wait()
			spoil()
			w.admin(s)
			s.Restart() // no cool-down for the next one
		} else {
			together.Go(spoil)
		}
	}
	together.Wait()
	w.admin(s)
	hub.ClearFaults()
	hub.Set(func(o *hubtest.Options) { o.Accounts[0].PAT = "another" }) // revoked
	hub.RevokeTokens()
	w.ask(s.URL + "/v2/library/unknown/manifests/1")
	w.ask(s.URL + "/v2/library/good/manifests/2")
	w.admin(s)
	w.see("configuration", s.Command("config", "show"))
	w.see("table", s.Command("stats"))
	hub.Close()
	w.ask(s.URL + "/v2/library/unknown/manifests/1")
	w.admin(s)
	s.Kill()
	w.directory(s.Data)
	w.see("log", s.Log())
	w.check()
}
