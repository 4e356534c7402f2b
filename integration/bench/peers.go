package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// peer is a kind of server. prepare writes its configuration into dir and returns the command line.
// With tls, clients come by TLS. Each server logs its requests as it does by default.
type peer struct {
	name    string
	prepare func(dir, addr string, tls bool) ([]string, error)
}

func names(ps []peer) []string {
	var all []string
	for _, p := range ps {
		all = append(all, p.name)
	}
	return all
}

// The peers' names.
const (
	hubcache    = "hubcache"
	nginx       = "nginx"
	nginxStatic = "nginx static"
	r2          = "registry 2"
	r3          = "registry 3"
)

func peers(p programs, u *upstream) []peer {
	return []peer{
		{hubcache, func(dir, addr string, tls bool) ([]string, error) {
			secret := filepath.Join(dir, "pat")
			admin, err := freePort()
			if err != nil {
				return nil, err
			}
			args := []string{p.hubcache, "serve", "--listen", addr, "--admin-listen", fmt.Sprint("127.0.0.1:", admin),
				"--data-dir", filepath.Join(dir, "data"), "--upstream", u.hub.RegistryURL(),
				"--username", account, "--password-file", secret, "--log-format", "json"}
			if tls {
				cert, key, err := certificate(dir)
				if err != nil {
					return nil, err
				}
				args = append(args, "--tls-cert-file", cert, "--tls-key-file", key)
			}
			return args, os.WriteFile(secret, []byte(pat), 0o600)
		}},
		{nginx, func(dir, addr string, tls bool) ([]string, error) {
			listen := addr
			if tls {
				cert, key, err := certificate(dir)
				if err != nil {
					return nil, err
				}
				listen = fmt.Sprintf("%s ssl; ssl_certificate %s; ssl_certificate_key %s", addr, cert, key)
			}
			return nginxCommand(p.nginx, dir, proxyConfig(dir, listen, u))
		}},
		{nginxStatic, func(dir, addr string, tls bool) ([]string, error) {
			if err := u.files(dir); err != nil {
				return nil, err
			}
			return nginxCommand(p.nginx, dir, fmt.Sprintf("server { listen %s; root %s/files; }", addr, dir))
		}},
		{r3, func(dir, addr string, tls bool) ([]string, error) {
			front, err := u.front()
			if err != nil {
				return nil, err
			}
			return registryCommand(p.registry3, dir, addr, "http://"+front, tls)
		}},
		{r2, func(dir, addr string, tls bool) ([]string, error) {
			return registryCommand(p.registry2, dir, addr, u.hub.RegistryURL(), tls)
		}},
	}
}

// certificate writes a certificate for 127.0.0.1 and its key into dir.
func certificate(dir string) (cert, key string, err error) {
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		return "", "", err
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return "", "", err
	}
	return cert, key, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}), 0o600)
}

func registryCommand(program, dir, addr, remote string, tls bool) ([]string, error) {
	secured := ""
	if tls {
		cert, key, err := certificate(dir)
		if err != nil {
			return nil, err
		}
		secured = fmt.Sprintf(", tls: {certificate: %q, key: %q}", cert, key)
	}
	config := fmt.Sprintf(`version: 0.1
storage:
  filesystem: {rootdirectory: %s/data}
  cache: {blobdescriptor: inmemory}
http: {addr: "%s", secret: bench%s}
proxy: {remoteurl: "%s", username: %s, password: %s}
`, dir, addr, secured, remote, account, pat)
	file := filepath.Join(dir, "config.yml")
	return []string{program, "serve", file}, os.WriteFile(file, []byte(config), 0o600)
}

func nginxCommand(program, dir, servers string) ([]string, error) {
	config := fmt.Sprintf(`daemon off;
user root;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log warn;
events { worker_connections 1024; }
http {
	access_log %[1]s/access.log;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	client_body_temp_path %[1]s/tmp;
	proxy_temp_path %[1]s/tmp;
	fastcgi_temp_path %[1]s/tmp;
	uwsgi_temp_path %[1]s/tmp;
	scgi_temp_path %[1]s/tmp;
	%[2]s
}
`, dir, servers)
	file := filepath.Join(dir, "nginx.conf")
	return []string{program, "-e", filepath.Join(dir, "error.log"), "-c", file}, os.WriteFile(file, []byte(config), 0o600)
}

// proxyConfig makes nginx a pull-through cache as good as nginx can be: it caches the Hub's
// redirects for a while and follows them itself. It can't get tokens, so the configuration
// has one for all repositories.
func proxyConfig(dir, listen string, u *upstream) string {
	return fmt.Sprintf(`
	proxy_cache_path %[1]s/cache levels=1:2 keys_zone=hub:10m max_size=20g inactive=7d use_temp_path=off;
	upstream registry { server %[2]s; keepalive 32; }
	upstream cdn { server %[3]s; keepalive 32; }
	map $location $signed { "~^https?://[^/]+(?<path>/.*)$" $path; }
	server {
		listen %[4]s;
		proxy_http_version 1.1;
		proxy_set_header Connection "";
		proxy_set_header Authorization "Bearer %[5]s";
		proxy_set_header Accept "%[6]s";
		proxy_cache hub;
		proxy_cache_lock on;
		proxy_cache_lock_timeout 1h;
		proxy_cache_lock_age 1h;
		proxy_cache_key $uri;
		location ~ /manifests/sha256: {
			proxy_cache_valid 200 1y;
			proxy_pass http://registry;
		}
		location ~ /manifests/ {
			proxy_cache_valid 200 60s;
			proxy_pass http://registry;
		}
		location ~ /blobs/(?<digest>.+)$ {
			proxy_cache_key "redirect $uri";
			proxy_cache_valid 307 10m;
			proxy_intercept_errors on;
			error_page 307 = @cdn;
			proxy_pass http://registry;
		}
		location @cdn {
			set $location $upstream_http_location;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Authorization "";
			proxy_cache_key $digest;
			proxy_cache_valid 200 1y;
			proxy_pass http://cdn$signed;
		}
	}`, dir, strings.TrimPrefix(u.hub.RegistryURL(), "http://"), strings.TrimPrefix(u.hub.Network.URL(hubtest.CDN), "http://"), listen, u.token, accept)
}
