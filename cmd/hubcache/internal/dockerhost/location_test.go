package dockerhost

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// dockerClient makes a folder for the docker command's own configuration, and no variable
// of the environment says where an engine is.
func dockerClient(t *testing.T) (dir string) {
	t.Helper()
	for _, name := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"} {
		t.Setenv(name, "")
	}
	dir = t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	return dir
}

// writeContext writes a docker context as "docker context create" does, and returns the
// folder of its TLS files.
func writeContext(t *testing.T, dir, name, endpoint string) (tlsDir string) {
	t.Helper()
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	meta, tlsDir := filepath.Join(dir, "contexts", "meta", id), filepath.Join(dir, "contexts", "tls", id, "docker")
	body := `{"Name":"` + name + `","Metadata":{},"Endpoints":{"docker":` + endpoint + `}}`
	if err := errors.Join(os.MkdirAll(meta, 0o755), os.MkdirAll(tlsDir, 0o755), os.WriteFile(filepath.Join(meta, "meta.json"), []byte(body), 0o644)); err != nil {
		t.Fatal(err)
	}
	return tlsDir
}

// TestLocateFollowsTheDockerCommand: the flag goes before the setting, the setting before
// DOCKER_HOST, that before DOCKER_CONTEXT, that before the context of config.json.
func TestLocateFollowsTheDockerCommand(t *testing.T) {
	dir := dockerClient(t)
	s := settings.Default()
	locate := func(flag, wantHost, wantSource string) {
		t.Helper()
		at, err := Locate(flag, s)
		if err != nil || at.Host != wantHost || at.Source != wantSource {
			t.Errorf("%+v, %v; want %s from %s", at, err, wantHost, wantSource)
		}
	}
	locate("", "unix:///var/run/docker.sock", "the default")
	writeContext(t, dir, "home", `{"Host":"ssh://me@home"}`)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{},"currentContext":"home"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	locate("", "ssh://me@home", `the docker context "home"`)
	t.Setenv("DOCKER_CONTEXT", "default")
	locate("", "unix:///var/run/docker.sock", "the default")
	writeContext(t, dir, "lab", `{"Host":"tcp://lab:2376","SkipTLSVerify":true}`)
	t.Setenv("DOCKER_CONTEXT", "lab")
	locate("", "tcp://lab:2376", `the docker context "lab"`)
	t.Setenv("DOCKER_HOST", "10.0.0.1:2375") // the docker command takes this for TCP
	locate("", "tcp://10.0.0.1:2375", "DOCKER_HOST")
	t.Setenv("DOCKER_HOST", "unix://")
	locate("", "unix:///var/run/docker.sock", "DOCKER_HOST")
	s.Docker.Host = "unix:///run/other.sock"
	locate("", "unix:///run/other.sock", "docker.host")
	locate("unix:///run/flag.sock", "unix:///run/flag.sock", "--host")
}

// TestLocateRefuses: what names an engine and can't be read is an error that names it, and
// not the default.
func TestLocateRefuses(t *testing.T) {
	for _, test := range []struct{ name, config, context, flag, host, says string }{
		{name: "no such context", config: `{"currentContext":"gone"}`, says: `no docker context "gone"`},
		{name: "a broken context", config: `{}`, context: `{"Host":`, says: `"ctx", can't be read`},
		{name: "a context without an engine", config: `{}`, context: `{}`, says: "names no Docker engine"},
		{name: "a config.json that can't be read", config: "a directory", says: "--host says where"},
		{name: "a broken config.json", config: `{`, says: "config.json"},
		{name: "a path as the flag", flag: "/var/run/docker.sock", says: "--host: \"/var/run/docker.sock\" is not the URL"},
		{name: "DOCKER_HOST without an address", host: "tcp://", says: "DOCKER_HOST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := dockerClient(t)
			t.Setenv("DOCKER_HOST", test.host)
			if test.context != "" {
				writeContext(t, dir, "ctx", test.context)
				t.Setenv("DOCKER_CONTEXT", "ctx")
			}
			err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(test.config), 0o600)
			if test.config == "a directory" {
				err = errors.Join(os.Remove(filepath.Join(dir, "config.json")), os.Mkdir(filepath.Join(dir, "config.json"), 0o755))
			}
			if err != nil {
				t.Fatal(err)
			}
			if at, err := Locate(test.flag, settings.Default()); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v, %v; want an error with %q", at, err, test.says)
			}
		})
	}
}

// TestContextsAndEnvironmentBringTLS: an engine that is reached by TCP and wants a client's
// certificate is asked with the context's, or with that of DOCKER_CERT_PATH.
func TestContextsAndEnvironmentBringTLS(t *testing.T) {
	dir := dockerClient(t)
	engine := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("API-Version", "1.41")
		_ = json.NewEncoder(w).Encode(system.Info{ServerVersion: "20.10.24"})
	}))
	engine.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	engine.StartTLS()
	t.Cleanup(engine.Close)
	host := "tcp://" + engine.Listener.Addr().String()
	ask := func() error {
		t.Helper()
		at, err := Locate("", settings.Default())
		if err != nil {
			t.Fatal(err)
		}
		c, err := at.Connect("doctor")
		if err != nil {
			return err
		}
		defer c.Close()
		info, err := c.Info(t.Context(), client.InfoOptions{})
		if err == nil && info.Info.ServerVersion != "20.10.24" {
			t.Errorf("it is %+v", info.Info)
		}
		return err
	}
	tlsDir := writeContext(t, dir, "lab", `{"Host":"`+host+`"}`)
	t.Setenv("DOCKER_CONTEXT", "lab")
	if err := ask(); err == nil {
		t.Error("an engine with TLS was asked without it")
	}
	writePair(t, tlsDir)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: engine.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(tlsDir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err != nil {
		t.Errorf("with the context's certificate: %v", err)
	}
	t.Setenv("DOCKER_HOST", host)
	t.Setenv("DOCKER_TLS_VERIFY", "1")
	if err := ask(); err == nil || !strings.Contains(err.Error(), "ca.pem") {
		t.Errorf("without ca.pem: %v", err)
	}
	t.Setenv("DOCKER_CERT_PATH", tlsDir)
	if err := ask(); err != nil {
		t.Errorf("with DOCKER_CERT_PATH: %v", err)
	}
}

// writePair writes a client's certificate and its key.
func writePair(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
}
