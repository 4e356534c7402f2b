package dockerhost

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moby/moby/client"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// defaultHost is where the engine of a machine listens.
const (
	defaultHost   = "unix:///var/run/docker.sock"
	defaultSource = "the default"
)

// Location is where a Docker engine is. It is a value; any number of goroutines may use it.
type Location struct {
	Host   string // a URL, such as unix:///var/run/docker.sock
	Source string // who said so, such as DOCKER_HOST, for people
	tls    tlsFiles
}

// tlsFiles are for an engine that is reached by TCP; "" for a file that isn't there.
type tlsFiles struct {
	ca, cert, key string
	noVerify      bool
}

// Locate says where the engine is, as the docker command would: by the flag --host, then
// docker.host, then DOCKER_HOST, then the current docker context. If all are empty, it is
// the default. It fails when the chosen context can't be read.
func Locate(flag string, s *settings.Settings) (Location, error) {
	for _, at := range []Location{
		{Host: flag, Source: "--host"},
		{Host: string(s.Docker.Host), Source: "docker.host"},
		{Host: os.Getenv("DOCKER_HOST"), Source: "DOCKER_HOST"},
	} {
		if at.Host = wholeURL(at.Host); at.Host == "" {
			continue
		}
		if _, err := client.ParseHostURL(at.Host); err != nil {
			return Location{}, settings.UsageError{Err: fmt.Errorf("%s: %q is not the URL of a Docker engine, such as %s", at.Source, at.Host, defaultHost)}
		}
		at.tls = tlsFromEnvironment()
		return at, nil
	}
	name, err := currentContext()
	if err != nil {
		return Location{}, err
	}
	if name == "" || name == "default" {
		return Location{Host: defaultHost, Source: defaultSource, tls: tlsFromEnvironment()}, nil
	}
	return contextLocation(name)
}

// wholeURL completes what the docker command takes too: a host and a port mean TCP, and
// unix:// is the default socket.
func wholeURL(host string) string {
	switch host = strings.TrimSpace(host); {
	case host == "unix://":
		return defaultHost
	case host != "" && !strings.Contains(host, "://") && !strings.HasPrefix(host, "/"):
		return "tcp://" + host
	}
	return host
}

// clientDir is the folder of the docker command's own configuration; "" if there is no
// home directory.
func clientDir() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "" // as in a service: then there are no contexts either
	}
	return filepath.Join(home, ".docker")
}

// currentContext is the name of the docker context in use; "" or "default" for none.
func currentContext() (string, error) {
	if name := os.Getenv("DOCKER_CONTEXT"); name != "" {
		return name, nil
	}
	dir := clientDir()
	if dir == "" {
		return "", nil
	}
	path := filepath.Join(dir, "config.json")
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && len(body) == 0 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w; --host says where the engine is, whatever docker context is in use", err)
	}
	var config struct{ CurrentContext string }
	if err := json.Unmarshal(body, &config); err != nil {
		return "", fmt.Errorf("%s, which names the docker context, can't be read: %w", path, err)
	}
	return config.CurrentContext, nil
}

// contextLocation reads a docker context. The docker command keeps it in folders that are
// named by the digest of its name.
func contextLocation(name string) (Location, error) {
	sum := sha256.Sum256([]byte(name))
	id, dir := hex.EncodeToString(sum[:]), filepath.Join(clientDir(), "contexts")
	path := filepath.Join(dir, "meta", id, "meta.json")
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Location{}, fmt.Errorf("there is no docker context %q (%s is missing): docker context ls lists them, and --host says where the engine is", name, path)
	}
	if err != nil {
		return Location{}, err
	}
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err := json.Unmarshal(body, &meta); err != nil {
		return Location{}, fmt.Errorf("%s, the docker context %q, can't be read: %w", path, name, err)
	}
	endpoint := meta.Endpoints["docker"]
	if _, err := client.ParseHostURL(endpoint.Host); err != nil {
		return Location{}, fmt.Errorf("%s, the docker context %q, names no Docker engine", path, name)
	}
	files := tlsIn(filepath.Join(dir, "tls", id, "docker"))
	files.noVerify = endpoint.SkipTLSVerify
	return Location{Host: endpoint.Host, Source: fmt.Sprintf("the docker context %q", name), tls: files}, nil
}

// tlsFromEnvironment is what the docker command makes of DOCKER_TLS_VERIFY, DOCKER_TLS and
// DOCKER_CERT_PATH.
func tlsFromEnvironment() tlsFiles {
	verify := os.Getenv("DOCKER_TLS_VERIFY") != ""
	if !verify && os.Getenv("DOCKER_TLS") == "" {
		return tlsFiles{}
	}
	dir := os.Getenv("DOCKER_CERT_PATH")
	if dir == "" {
		dir = clientDir()
	}
	files := tlsIn(dir)
	files.noVerify = !verify
	if verify && files == (tlsFiles{}) {
		files.ca = filepath.Join(dir, "ca.pem") // so that Connect says that it is missing
	}
	return files
}

// tlsIn are the files in dir that are there.
func tlsIn(dir string) tlsFiles {
	existing := func(name string) string {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			return ""
		}
		return path
	}
	return tlsFiles{ca: existing("ca.pem"), cert: existing("cert.pem"), key: existing("key.pem")}
}

// config is the TLS configuration; nil for a connection without TLS.
func (f tlsFiles) config() (*tls.Config, error) {
	if f == (tlsFiles{}) {
		return nil, nil
	}
	c := &tls.Config{InsecureSkipVerify: f.noVerify}
	if f.ca != "" && !f.noVerify {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", f.ca)
		}
	}
	if f.cert != "" || f.key != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// String is the host and, unless it is the default, who said so.
func (l Location) String() string {
	if l.Source == defaultSource {
		return l.Host
	}
	return fmt.Sprintf("%s (from %s)", l.Host, l.Source)
}

// socket is the path of the engine's unix socket; "" if it hasn't one.
func (l Location) socket() string {
	path, ok := strings.CutPrefix(l.Host, "unix://")
	if !ok {
		return ""
	}
	return path
}

// Local is nil when the engine is reached by a unix socket, and so is one of this machine.
// If not, the error says in the same words for every command that it works only there.
func (l Location) Local(command string) error {
	if l.socket() != "" {
		return nil
	}
	return settings.UsageError{Err: fmt.Errorf("the Docker engine is at %s, and hubcache %s works only on the engine's own machine, by its unix socket: run it there, or choose the engine of this machine with --host %s",
		l, command, defaultHost)}
}

// Connect returns a client of the engine. It doesn't ask the engine anything yet. The
// command is for the error when the engine can't be reached in this way: that is by ssh.
func (l Location) Connect(command string) (*client.Client, error) {
	if strings.HasPrefix(l.Host, "ssh://") {
		return nil, l.Local(command)
	}
	opts := []client.Opt{client.WithUserAgent("hubcache")}
	if l.socket() == "" {
		config, err := l.tls.config()
		if err != nil {
			return nil, fmt.Errorf("TLS with the Docker engine at %s: %w", l, err)
		}
		if config != nil {
			opts = append(opts, client.WithHTTPClient(&http.Client{Transport: &http.Transport{TLSClientConfig: config}, CheckRedirect: client.CheckRedirect}))
		}
	}
	c, err := client.New(append(opts, client.WithHost(l.Host))...)
	if err != nil {
		return nil, fmt.Errorf("the Docker engine at %s: %w", l, err)
	}
	return c, nil
}
