package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// examined is a host that doctor looks at: a Docker Hub, a server with its settings, and an
// engine that uses the server as its mirror. A test breaks one thing of it.
type examined struct {
	t      *testing.T
	hub    *hubtest.Hub
	config string   // the server's settings, without where it listens
	env    []string // of the server
	server *process

	version    string   // of the engine
	containerd bool     // the engine has the containerd store
	mirrors    []string // of the engine; nil: the server
	unused     bool     // the engine doesn't ask its mirrors
	insecure   bool     // the engine asks for no certificate on loopback addresses
	certs      string   // the engine's folder of certificates

	local string   // the settings of the host
	args  []string // more flags of doctor
}

const pat = "dckr_pat_hunter2"

// newExamined returns a host on which nothing is wrong.
func newExamined(t *testing.T, o hubtest.Options) *examined {
	t.Helper()
	o.Accounts = []hubtest.Account{{Username: "jane", PAT: pat}}
	hub := hubtest.New(o)
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hub.Close)
	hub.AddImage("library/hello-world", "latest", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<10)})
	e := &examined{t: t, hub: hub, version: "20.10.24", certs: t.TempDir(), local: "{}"}
	e.serves(hub.RegistryURL(), e.token(pat), "")
	if ca, _ := hub.Network.CA(); ca != nil {
		e.serves(hub.RegistryURL(), e.token(pat), "ca_file: "+e.file(string(ca)))
	}
	return e
}

// serves sets the settings of the server: its upstream, the file with its token, and more of
// the section upstream.
func (e *examined) serves(upstream, token, more string) {
	e.config = fmt.Sprintf("budget: 1GiB\nmin_free: 1MiB\nupstream: {url: '%s', username: jane, password_file: '%s', %s}\n", upstream, token, more)
}

func (e *examined) file(content string) string {
	e.t.Helper()
	path := filepath.Join(e.t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o400); err != nil {
		e.t.Fatal(err)
	}
	return path
}

// token writes a file with a token.
func (e *examined) token(secret string) string { return e.file(secret) }

// hosts writes the engine's hosts.toml of a registry.
func (e *examined) hosts(registry, content string) {
	e.t.Helper()
	path := filepath.Join(e.certs, registry, "hosts.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		e.t.Fatal(err)
	}
}

// servesToo adds a second registry to the settings of the server. It is the Hub under another name.
func (e *examined) servesToo(registry, upstream string) {
	e.config += fmt.Sprintf("registries: {%s: {url: '%s'}}\n", registry, upstream)
}

// start starts the server.
func (e *examined) start() {
	e.t.Helper()
	e.server = startServer(e.t, e.config, e.env...)
}

// engine starts the engine and returns its URL. For each image it asks its mirrors in turn, as
// dockerd does.
func (e *examined) engine() string {
	e.t.Helper()
	listener, err := net.Listen("unix", filepath.Join(e.t.TempDir(), "s"))
	if err != nil {
		e.t.Fatal(err)
	}
	info := system.Info{ServerVersion: e.version, RegistryConfig: &registry.ServiceConfig{Mirrors: e.mirrors}}
	if e.mirrors == nil {
		info.RegistryConfig.Mirrors = []string{e.server.pull + "/"}
	}
	if e.containerd {
		info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	}
	if e.insecure {
		info.RegistryConfig.InsecureRegistryCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("API-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/info"):
			_ = json.NewEncoder(w).Encode(info)
		case strings.Contains(r.URL.Path, "/distribution/"):
			_, image, _ := strings.Cut(r.URL.Path, "/distribution/")
			for _, mirror := range info.RegistryConfig.Mirrors {
				if !e.unused && e.asks(mirror, strings.TrimSuffix(image, "/json")) {
					_, _ = w.Write([]byte("{}"))
					return
				}
			}
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(`{"message":"Docker Hub can't be reached from a test"}`))
		}
	})
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	server.Start()
	e.t.Cleanup(server.Close)
	return "unix://" + listener.Addr().String()
}

// asks asks a mirror for an image, with the certificates that the engine trusts.
func (e *examined) asks(mirror, image string) bool {
	u, err := url.Parse(strings.TrimRight(mirror, "/"))
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	if ca, err := os.ReadFile(filepath.Join(e.certs, u.Host, "ca.crt")); err == nil {
		roots.AppendCertsFromPEM(ca)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, InsecureSkipVerify: e.insecure}}}
	name, tag, _ := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	resp, err := client.Get(u.String() + "/v2/library/" + name + "/manifests/" + tag)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// doctor runs it, and returns the exit code and what it found.
func (e *examined) doctor() (code int, findings []dockerhost.Finding, text string) {
	e.t.Helper()
	engine, admin := "unix:///nowhere", "127.0.0.1:1"
	if e.server != nil {
		engine, admin = e.engine(), e.server.admin
	} else if e.mirrors != nil {
		engine = e.engine()
	}
	config := filepath.Join(e.t.TempDir(), "host.yaml")
	local := strings.TrimSuffix(strings.TrimPrefix(e.local, "{}"), "\n") + fmt.Sprintf("\ndocker: {hold_dir: %s, state: %s/uses.db}\n", e.t.TempDir(), e.t.TempDir())
	if err := os.WriteFile(config, []byte(local), 0o600); err != nil {
		e.t.Fatal(err)
	}
	args := append([]string{"doctor", "--json", "--config", config, "--host", engine, "--admin", admin, "--certs-dir", e.certs}, e.args...)
	run := func(args []string) (int, string) {
		cmd := exec.Command("hubcache", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + e.t.TempDir()}
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		return exitCodeOf(e.t, err), string(out)
	}
	code, out := run(args)
	var doc struct{ Checks []dockerhost.Finding }
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		e.t.Fatalf("%v in %s", err, out)
	}
	return code, doc.Checks, out
}

// selfSigned writes a certificate for 127.0.0.1 that is valid for that time, and its key.
func selfSigned(t *testing.T, from, to time.Time) (certFile, keyFile string, pair tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tlsSettings are the settings for https with a certificate that nobody knows.
func (e *examined) tlsSettings() (certFile string) {
	certFile, keyFile, _ := selfSigned(e.t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	e.config += fmt.Sprintf("tls: {cert_file: %s, key_file: %s}\n", certFile, keyFile)
	return certFile
}

// copyFile copies a file into a folder that it makes.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	body, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, body, 0o644); err != nil {
		t.Fatal(err)
	}
}

// doctorState is one state that a host can be in. check and says are the only thing that doctor
// calls broken; "" for nothing. notes are what it says without calling it broken: check, and a
// part of the text.
type doctorState struct {
	name   string
	hub    hubtest.Options
	before func(*examined) // the server starts; nil: nothing
	after  func(*examined) // it has started; nil: nothing
	absent bool            // the server isn't started
	also   string          // a check that finds the same
	check  string
	says   string
	notes  map[string]string
}

// TestDoctorNamesTheCause: for each state that the server, the upstream, the engine and the disk
// can be in, doctor names the cause and nothing else as broken, and its exit code is 0 exactly
// when pulls work as intended.
func TestDoctorNamesTheCause(t *testing.T) {
	for _, state := range [][]doctorState{tokenStates(), upstreamStates(), portStates(), mirrorStates(), registryStates(), diskStates()} {
		for _, s := range state {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				s.examine(t)
			})
		}
	}
}

func (s doctorState) examine(t *testing.T) {
	e := newExamined(t, s.hub)
	if s.before != nil {
		s.before(e)
	}
	if !s.absent {
		e.start()
	}
	if s.after != nil {
		s.after(e)
	}
	code, findings, text := e.doctor()
	want := 0
	if s.check != "" {
		want = 1
	}
	if code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	found := s.check == ""
	notes := map[string]string{}
	for check, says := range s.notes {
		notes[check] = says
	}
	for _, f := range findings {
		if says, ok := notes[f.Check]; ok && f.Status != dockerhost.StatusBroken && strings.Contains(f.Detail, says) {
			delete(notes, f.Check)
		}
		if f.Status != dockerhost.StatusBroken {
			continue
		}
		if f.Check == s.check && strings.Contains(f.Detail, s.says) && (f.Advice != "" || f.Check == "data_dir") {
			found = true
		} else if !(s.absent && (f.Check == "admin" || f.Check == "server")) && f.Check != s.also {
			t.Errorf("%s is broken: %s", f.Check, f.Detail)
		}
	}
	if !found || len(notes) > 0 {
		t.Errorf("want %s broken: %s; notes missing: %v", s.check, s.says, notes)
	}
	if strings.Contains(text, "hunter2") {
		t.Error("a secret is printed")
	}
	if t.Failed() {
		t.Log(text)
	}
}

func tokenStates() []doctorState {
	file := func(secret string) func(*examined) {
		return func(e *examined) { e.serves(e.hub.RegistryURL(), e.token(secret), "") }
	}
	says := func(status int, body string, header ...string) func(*examined) {
		return func(e *examined) {
			e.hub.Inject(hubtest.Match{Face: hubtest.Token, Account: "jane"}, hubtest.Status(status, body, header...))
		}
	}
	return []doctorState{
		{name: "nothing is wrong", notes: map[string]string{"token": "accepts the access token of jane", "pull": "through the cache", "clock": "agrees"}},
		{name: "anonymous", before: func(e *examined) {
			e.config = "budget: 1GiB\nmin_free: 1MiB\nupstream: {url: '" + e.hub.RegistryURL() + "'}\n"
		},
			notes: map[string]string{"token": "anonymous"}},
		{name: "a server that refuses images", before: func(e *examined) {
			e.serves(e.hub.RegistryURL(), e.token(pat), "")
			e.config += "tags: {rules: [{match: 'org/*:*', quarantine: 72h}]}\n"
		}, notes: map[string]string{"refusals": "ask the registry itself"}},
		{name: "a credential of systemd", before: func(e *examined) {
			path := e.token(pat)
			e.env = append(e.env, "CREDENTIALS_DIRECTORY="+filepath.Dir(path))
			e.serves(e.hub.RegistryURL(), filepath.Base(path), "")
		}, notes: map[string]string{"token": "accepts"}},
		{name: "a credential that isn't there", before: func(e *examined) {
			e.env = append(e.env, "CREDENTIALS_DIRECTORY="+e.t.TempDir())
			e.serves(e.hub.RegistryURL(), "dockerhub-pat", "")
		}, check: "token", says: "the service was started without the credential dockerhub-pat"},
		{name: "missing", before: func(e *examined) { e.serves(e.hub.RegistryURL(), "/nowhere/token", "") },
			check: "token", says: "the file with the access token is missing: /nowhere/token: no such file"},
		{name: "unreadable", before: func(e *examined) {
			path := e.token(pat)
			if err := os.Chmod(path, 0); err != nil {
				e.t.Fatal(err)
			}
			e.serves(e.hub.RegistryURL(), path, "")
			e.env = append(e.env, ordinary)
		}, check: "token", says: "can't read the access token"},
		{name: "empty", before: file("\n"), check: "token", says: "the file with the access token is empty"},
		{name: "refused", before: file("dckr_pat_hunter2x"), check: "token", says: "docker.io refuses the access token of jane"},
		{name: "expired", before: says(401, `{"details":"personal access token is expired"}`), check: "token", says: "the access token of jane has expired"},
		{name: "throttled", before: says(429, `{"details":"too many requests"}`, "Retry-After", "60"), check: "token", says: "the token service of docker.io limits requests"},
		{name: "malformed at the start", absent: true, before: func(e *examined) {
			e.local = fmt.Sprintf("listen: 127.0.0.1:1\nupstream: {username: jane, password_file: %s}\n", e.token(`"`+pat+`"`))
		}, check: "token", says: "it is in quotation marks"},
		{name: "malformed later", after: func(e *examined) {
			path := passwordFileIn(e)
			if err := os.Remove(path); err != nil {
				e.t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(pat+" x"), 0o400); err != nil {
				e.t.Fatal(err)
			}
			e.server.signal(syscall.SIGHUP)
			e.server.awaitLog("settings read again")
		}, notes: map[string]string{"token": "character 17 is a blank; the one that was read before is in use"}},
		{name: "everybody may read it", before: func(e *examined) {
			path := e.token(pat)
			if err := os.Chmod(path, 0o444); err != nil {
				e.t.Fatal(err)
			}
			e.serves(e.hub.RegistryURL(), path, "")
		}, notes: map[string]string{"password file": "every user of this machine may read"}},
	}
}

// passwordFileIn is the file with the token in the settings of the server.
func passwordFileIn(e *examined) string {
	_, rest, _ := strings.Cut(e.config, "password_file: '")
	path, _, _ := strings.Cut(rest, "'")
	return path
}

func upstreamStates() []doctorState {
	at := func(upstream string) func(*examined) {
		return func(e *examined) { e.serves(upstream, e.token(pat), "") }
	}
	limited := hubtest.Match{Face: hubtest.Registry, Kind: "manifests"}
	return []doctorState{
		{name: "down", before: at("http://127.0.0.1:1"), check: "upstream docker.io", says: "127.0.0.1:1 refuses the connection"},
		{name: "sick", before: func(e *examined) {
			e.hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.Status(503, "sorry"))
		}, check: "upstream docker.io", says: "answers 503 Service Unavailable"},
		{name: "silent", before: func(e *examined) { e.hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.Hang()) },
			check: "upstream docker.io", says: "does not answer in time"},
		{name: "silent token service", before: func(e *examined) { e.hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Hang()) },
			check: "upstream docker.io", says: "does not answer in time"},
		{name: "no such name", before: at("http://registry..invalid"), check: "upstream docker.io", says: "the name registry..invalid can't be resolved"},
		{name: "TLS of nobody", hub: hubtest.Options{TLS: true}, before: func(e *examined) { e.serves(e.hub.RegistryURL(), e.token(pat), "") },
			check: "upstream docker.io", says: "is not trusted"},
		{name: "TLS of a known authority", hub: hubtest.Options{TLS: true}},
		{name: "the limit on pulls", before: func(e *examined) { e.hub.Inject(limited, hubtest.TooManyRequests()) },
			check: "upstream docker.io", says: "its limit on pulls is reached"},
		{name: "little quota", hub: hubtest.Options{AccountLimit: 12}, after: func(e *examined) {
			for i := range 11 {
				e.hub.AddImage("library/many", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<10)})
				e.server.get(fmt.Sprintf("%s/v2/library/many/manifests/%d", e.server.pull, i))
			}
		}, notes: map[string]string{"quota": "1 of 12 pulls are left at docker.io"}},
		{name: "clock", hub: hubtest.Options{ClockSkew: time.Hour}, check: "clock", says: "(behind)"},
		{name: "clock ahead", hub: hubtest.Options{ClockSkew: -time.Hour}, check: "clock", says: "off by 1h0m0s (ahead)"},
		certificateState("certificates of tomorrow", 23*time.Hour, -24*time.Hour, "off by 24h0m0s (ahead)"),
		certificateState("certificates of yesterday", -25*time.Hour, 0, "it is right, and the certificate of"),
	}
}

// certificateState is an upstream whose certificate begins to be valid after from, for an hour, and
// whose clock is off by skew.
func certificateState(name string, from, skew time.Duration, says string) doctorState {
	return doctorState{name: name, before: func(e *examined) {
		certFile, _, pair := selfSigned(e.t, time.Now().Add(from), time.Now().Add(from+time.Hour))
		hub := hubtest.New(hubtest.Options{TLS: true, Certificate: &pair, ClockSkew: skew})
		if err := hub.Start(); err != nil {
			e.t.Fatal(err)
		}
		e.t.Cleanup(hub.Close)
		e.serves(hub.RegistryURL(), e.token(pat), "ca_file: "+certFile)
	}, check: "clock", says: says}
}

func portStates() []doctorState {
	return []doctorState{
		{name: "no server", absent: true, before: func(e *examined) {
			e.mirrors, e.local = []string{"http://127.0.0.1:1"}, "listen: 127.0.0.1:1\n"
		}, check: "server", says: "nothing listens at 127.0.0.1:1"},
		{name: "port closed", after: func(e *examined) {
			e.server.signal(syscall.SIGKILL)
			<-e.server.ended
			e.local = "listen: " + strings.TrimPrefix(e.server.pull, "http://") + "\n"
		}, also: "server", check: "admin", says: "no hubcache answers at"},
		{name: "listen_allow", before: func(e *examined) { e.config += "listen_allow: [10.0.0.0/8, 192.168.0.0/16]\n" },
			check: "server", says: "its address 127.0.0.1 is not in listen_allow (10.0.0.0/8, 192.168.0.0/16)"},
		{name: "listen_allow with https", before: func(e *examined) { e.tlsSettings(); e.config += "listen_allow: [10.0.0.0/8]\n" },
			check: "server", says: "its address 127.0.0.1 is not in listen_allow"},
		{name: "listen_allow with this host", before: func(e *examined) { e.config += "listen_allow: [127.0.0.0/8]\n" }},
		{name: "a certificate that nobody knows", before: func(e *examined) { e.tlsSettings() },
			check: "server", says: "Docker does not trust the certificate of https://127.0.0.1:"},
		{name: "a certificate that Docker doesn't ask for", before: func(e *examined) { e.insecure = true; e.tlsSettings() },
			notes: map[string]string{"server": "Docker doesn't ask for one there"}},
		{name: "a certificate that Docker knows", before: func(e *examined) {
			ca := e.tlsSettings()
			e.start()
			copyFile(e.t, ca, filepath.Join(e.certs, strings.TrimPrefix(e.server.pull, "https://"), "ca.crt"))
		}, notes: map[string]string{"server": "answers"}, absent: true},
		{name: "a unix socket alone", before: func(e *examined) {
			e.config += "listen: unix:" + filepath.Join(e.t.TempDir(), "s") + "\n"
			e.mirrors = []string{"http://127.0.0.1:1"}
		}, check: "server", says: "the server listens on no TCP address"},
		{name: "something else listens", absent: true, before: func(e *examined) {
			other := httptest.NewServer(http.NotFoundHandler())
			e.t.Cleanup(other.Close)
			e.local = "listen: " + strings.TrimPrefix(other.URL, "http://") + "\n"
		}, check: "server", says: "/v2/ answers 404 Not Found"},
		{name: "two servers", before: func(e *examined) {
			other := newExamined(e.t, hubtest.Options{})
			other.start()
			e.mirrors = []string{other.server.pull}
			e.config += "listen: [127.0.0.1:0]\n"
		}, check: "docker", says: "does not have the mirror"},
	}
}

func mirrorStates() []doctorState {
	return []doctorState{
		{name: "mirror absent", before: func(e *examined) { e.mirrors = []string{} }, check: "docker", says: "does not have the mirror http://127.0.0.1:"},
		{name: "another mirror", before: func(e *examined) { e.mirrors = []string{"http://127.0.0.1:1"} }, check: "docker", says: "(it has: http://127.0.0.1:1)"},
		{name: "mirror by another name", after: func(e *examined) {
			e.mirrors = []string{strings.Replace(e.server.pull, "127.0.0.1", "localhost", 1)}
		}, notes: map[string]string{"docker": "has a mirror that is the cache"}},
		{name: "mirror not used", before: func(e *examined) { e.unused = true }, check: "pull", says: "the daemon has the mirror and does not use it"},
		{name: "loopback with the containerd store", before: func(e *examined) { e.version, e.containerd = "29.0.0", true },
			check: "docker", says: "accepts any certificate for Docker Hub"},
		{name: "loopback with a hosts.toml", before: func(e *examined) { e.version, e.containerd = "29.0.0", true }, after: func(e *examined) {
			e.hosts("docker.io", "[host.\""+e.server.pull+"\"]\n")
		}},
		{name: "loopback in hosts.toml alone", before: func(e *examined) { e.version, e.containerd, e.mirrors = "29.1.0", true, []string{} }, after: func(e *examined) {
			e.hosts("docker.io", "[host.\""+e.server.pull+"\"]\n  capabilities = [\"pull\", \"referrers\"]\n")
		}, notes: map[string]string{"docker": "has the mirror", "pull": "only when it pulls"}},
		{name: "a hosts.toml that the engine ignores", before: func(e *examined) { e.version, e.containerd, e.mirrors = "29.0.4", true, []string{} }, after: func(e *examined) {
			e.hosts("docker.io", "[host.\""+e.server.pull+"\"]\n  capabilities = [\"pull\", \"referrers\"]\n")
		}, check: "docker", says: `because of the capability "referrers"`},
		{name: "a hosts.toml of another mirror", before: func(e *examined) { e.version, e.containerd = "29.0.4", true }, after: func(e *examined) {
			e.hosts("docker.io", "[host.\"https://mirror.example\"]\n")
		}, check: "docker", says: "pulls by that file alone"},
		{name: "hello-world is not allowed", before: func(e *examined) { e.config += "allow: [library/redis]\n" },
			notes: map[string]string{"image": "allow and deny leave library/hello-world out", "pull": "which doesn't serve it"}},
		{name: "hello-world is not allowed and the token is refused", before: func(e *examined) {
			e.serves(e.hub.RegistryURL(), e.token("dckr_pat_hunter2x"), "")
			e.config += "allow: [library/redis]\n"
			e.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<10)})
		}, check: "token", says: "refuses the access token"},
		{name: "a server that doesn't tell its settings", before: func(e *examined) {
			e.config += "admin: {listen: [127.0.0.1:0, 'unix:" + filepath.Join(e.t.TempDir(), "admin.sock") + "']}\n"
		}, notes: map[string]string{"admin": "not told its settings", "pull": "through the cache"}},
		{name: "hello-world is denied", before: func(e *examined) { e.config += "deny: [library/hello-*]\n" },
			notes: map[string]string{"image": "allow and deny leave library/hello-world out"}},
		{name: "another image", before: func(e *examined) {
			e.config += "allow: [library/redis]\n"
			e.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<10)})
			e.args = []string{"--image", "redis:7"}
		}, notes: map[string]string{"upstream docker.io": "ok"}},
	}
}

func registryStates() []doctorState {
	second := func(e *examined) { e.servesToo("ghcr.io", e.hub.RegistryURL()) }
	return []doctorState{
		{name: "a second registry and an engine with mirrors for Docker Hub alone", before: second,
			notes: map[string]string{"pull ghcr.io": "with ?ns=ghcr.io", "upstream ghcr.io": "ok", "docker": "come through the cache by names that begin with it"}},
		{name: "a second registry without a hosts.toml", before: func(e *examined) { second(e); e.version, e.containerd, e.mirrors = "29.0.4", true, []string{} }, after: func(e *examined) {
			e.hosts("docker.io", "[host.\""+e.server.pull+"\"]\n")
		}, notes: map[string]string{"docker ghcr.io": "there is no "}},
		{name: "a second registry with a hosts.toml", before: func(e *examined) { second(e); e.version, e.containerd, e.mirrors = "29.0.4", true, []string{} }, after: func(e *examined) {
			e.hosts("docker.io", "[host.\""+e.server.pull+"\"]\n")
			e.hosts("ghcr.io", "[host.\""+e.server.pull+"\"]\n")
		}, notes: map[string]string{"docker ghcr.io": "ghcr.io/hosts.toml names http://127.0.0.1"}},
		{name: "a second registry that is down", before: func(e *examined) { e.servesToo("ghcr.io", "http://127.0.0.1:1") },
			check: "upstream ghcr.io", says: "127.0.0.1:1 refuses the connection"},
		{name: "a second registry whose token is missing", before: func(e *examined) {
			e.config += fmt.Sprintf("registries: {ghcr.io: {url: '%s', username: joe, password_file: %s/missing}}\n", e.hub.RegistryURL(), e.t.TempDir())
		}, check: "token ghcr.io", says: "missing", also: "upstream ghcr.io"},
	}
}

func diskStates() []doctorState {
	with := func(budget, minFree string) func(*examined) {
		return func(e *examined) {
			e.config = strings.Replace(e.config, "budget: 1GiB\nmin_free: 1MiB\n", fmt.Sprintf("budget: %s\nmin_free: %s\n", budget, minFree), 1)
		}
	}
	return []doctorState{
		{name: "budget above the disk", before: with("4PiB", "1MiB"), check: "disk", says: "the budget (4PiB) is larger than the disk"},
		{name: "budget of nothing", before: with("50MiB", "1MiB"), check: "disk", says: "the budget is 50MiB, and most images are larger"},
		{name: "everybody may write", after: func(e *examined) {
			dir := ""
			for _, s := range e.server.cmd.Env {
				if value, ok := strings.CutPrefix(s, "HUBCACHE_DATA_DIR="); ok {
					dir = value
				}
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				e.t.Fatal(err)
			}
		}, check: "data_dir", says: "every user may write to"},
		{name: "budget below an image", before: func(e *examined) {
			with("100MiB", "1MiB")(e)
			e.hub.AddImage("library/large", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 60<<20)})
		}, after: func(e *examined) {
			e.server.get(e.server.pull + "/v2/library/large/manifests/1")
		}, check: "room", says: "the budget of 100MiB is smaller than the image docker.io/library/large:1"},
		{name: "disk full", before: with("1GiB", "4PiB"), check: "disk", says: "the disk is full"},
	}
}

// TestDoctorFindsTheServerAsOthersDo: doctor takes the settings file's admin.listen, and fails
// when that file can't be read.
func TestDoctorFindsTheServerAsOthersDo(t *testing.T) {
	for _, c := range []struct{ config, says string }{{"/nowhere.yaml", "/nowhere.yaml: no such file"}} {
		out, err := exec.Command("hubcache", "doctor", "--config", c.config).CombinedOutput()
		if code := exitCodeOf(t, err); code != 2 || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: exit code %d: %s", c.config, code, out)
		}
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("listen: 127.0.0.1:2\nadmin: {listen: 127.0.0.1:1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("hubcache", "doctor", "--host", "unix:///nowhere", "--config", path).CombinedOutput()
	if code := exitCodeOf(t, err); code != 1 || !strings.Contains(string(out), "127.0.0.1:1 (from admin.listen, file "+path+":2)") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
