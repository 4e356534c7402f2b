package dockerhost

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// askWithin is how long the pull port may take to answer. With an upstream that doesn't answer, it
// needs five seconds for an error.
const askWithin = 10 * time.Second

// pullURLs are the URLs by which this host reaches the pull API: those that the server has told,
// else the mirrors of the engine, else those of the settings.
func (d *Doctor) pullURLs() (urls []string) {
	if len(d.guessed) > 0 {
		return d.guessed
	}
	if d.told == nil {
		if u := MirrorURL(d.running); u != "" {
			urls = append(urls, u)
		}
		return urls
	}
	for _, at := range d.told.Listen {
		u, err := url.Parse(at)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			continue
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsUnspecified() {
			u.Host = net.JoinHostPort("127.0.0.1", u.Port())
		}
		urls = append(urls, u.String())
	}
	return urls
}

// mirror is the first of pullURLs; "" if the server listens on no TCP address.
func (d *Doctor) mirror() string {
	if urls := d.pullURLs(); len(urls) > 0 {
		return urls[0]
	}
	return ""
}

// pullClient asks the pull port. It trusts what the daemon trusts, has its certificates, and uses no
// proxy.
func (d *Doctor) pullClient(host string, insecure bool) *http.Client {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	files, _ := filepath.Glob(filepath.Join(d.certs, host, "*.crt")) // the pattern has no fault
	for _, file := range files {
		if pem, err := os.ReadFile(file); err == nil {
			roots.AppendCertsFromPEM(pem)
		}
	}
	var own []tls.Certificate
	files, _ = filepath.Glob(filepath.Join(d.certs, host, "*.cert"))
	for _, file := range files {
		if pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".cert")+".key"); err == nil {
			own = append(own, pair)
		}
	}
	return &http.Client{Timeout: askWithin, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: own, InsecureSkipVerify: insecure},
	}}
}

// checkPort asks the pull port for /v2/, as a daemon does first, and reports whether it can be
// used.
func (d *Doctor) checkPort(ctx context.Context, e *engine) bool {
	base := d.mirror()
	if base == "" {
		d.broken("server", "the server listens on no TCP address ("+orNone(d.running.Listen)+"), and Docker pulls over TCP only", "add one to listen")
		return false
	}
	u, err := url.Parse(base)
	if err != nil {
		d.broken("server", base+" is not a URL", "")
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/", nil)
	if err != nil {
		d.broken("server", err.Error(), "")
		return false
	}
	resp, err := d.pullClient(u.Host, false).Do(req)
	if certificateFault(err) && e.insecure(u.Host) {
		d.note("server", fmt.Sprintf("the certificate of %s is not trusted, and Docker doesn't ask for one there", base), "")
		resp, err = d.pullClient(u.Host, true).Do(req)
	}
	if err != nil {
		d.portFault(base, u.Host, err)
		return false
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode != http.StatusOK:
		d.broken("server", base+"/v2/ answers "+resp.Status, "is it hubcache that listens there?")
		return false
	case resp.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0":
		d.broken("server", base+"/v2/ answers, but not as a registry does", "is it hubcache that listens there?")
		return false
	}
	d.ok("server", "%s answers", base)
	return true
}

// localAddr is the address from which this host connects to another; invalid if it can't. No
// packet is sent.
func localAddr(host string) netip.Addr {
	c, err := net.Dial("udp", host)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	ap, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// certificateFault reports whether a certificate is not accepted.
func certificateFault(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// portFault says why the pull port can't be used.
func (d *Doctor) portFault(base, host string, err error) {
	from := localAddr(host)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // the rest is the URL
	}
	switch {
	case certificateFault(err):
		d.broken("server", fmt.Sprintf("Docker does not trust the certificate of %s: %v", base, err),
			fmt.Sprintf("put the certificate of its authority into %s", filepath.Join(d.certs, host, "ca.crt")))
	case certificateWanted(err):
		d.broken("server", fmt.Sprintf("%s wants a certificate of this host (tls.client_ca_file), and takes none that Docker has: %v", base, err),
			fmt.Sprintf("put one of its authority into %s, as client.cert and client.key", filepath.Join(d.certs, host)))
	case errors.Is(err, syscall.ECONNREFUSED) && d.told == nil:
		d.broken("server", "nothing listens at "+host+" (connection refused)", "start hubcache (systemctl start hubcache)")
	case errors.Is(err, syscall.ECONNREFUSED):
		d.broken("server", "the port "+host+" is closed to this host, although the server listens there", "a firewall, a container or another network is between them")
	case turnedAway(err) && from.IsValid() && d.excludes(from):
		d.broken("server", fmt.Sprintf("the server turns this host away: its address %s is not in listen_allow (%s)", from, strings.Join(d.running.ListenAllow, ", ")),
			fmt.Sprintf("add %s to listen_allow, and reload the server", from))
	case turnedAway(err):
		d.broken("server", host+" closes the connection at once: "+err.Error(), "is this host's address in listen_allow of the server, and is it hubcache that listens there?")
	default:
		d.broken("server", fmt.Sprintf("%s can't be asked: %v", base, err), "is it hubcache that listens there, and with this scheme?")
	}
}

// certificateWanted reports whether the server refuses this host's certificate, or that it has none.
func certificateWanted(err error) bool {
	_, ok := errors.AsType[tls.AlertError](err)
	return ok || err != nil && strings.Contains(err.Error(), "remote error: tls: ")
}

// turnedAway reports whether a connection was closed before an answer.
func turnedAway(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// excludes reports whether listen_allow leaves an address out.
func (d *Doctor) excludes(from netip.Addr) bool {
	nets, err := d.running.AllowedClients()
	return err == nil && len(nets) > 0 && !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(from) })
}

// checkServing asks the pull port for a tag that doesn't exist, so that the server asks the upstream
// with its token now. That costs no quota. It takes the repository of the image, or one that the
// server serves if it doesn't serve that one. It reports whether the server serves the image; what
// is wrong with the upstream, the server's figures say.
func (d *Doctor) checkServing(ctx context.Context) bool {
	repositories := []string{repositoryOf(d.Image)}
	for _, pattern := range d.running.Allow {
		if !strings.ContainsAny(pattern, "*?[\\") {
			repositories = append(repositories, repositoryOf(pattern))
		}
	}
	repositories = append(repositories, "library/busybox", "library/alpine")
	for i, repository := range repositories {
		before, _, err := d.client.Stats(ctx)
		if err != nil {
			return false // said by who asks next
		}
		status, code, detail, err := d.askManifest(ctx, repository, "")
		if err != nil {
			d.broken("server", fmt.Sprintf("%s answers /v2/, and no request for a manifest: %v", d.mirror(), err), "look into the server's log (journalctl -u hubcache)")
			return false
		}
		after, _, err := d.client.Stats(ctx)
		switch {
		case err == nil && after.Requests.Manifest.Total() == before.Requests.Manifest.Total():
			d.broken("server", fmt.Sprintf("what answers at %s is another hubcache than the one at %s", d.mirror(), d.client), "say with --admin which one is meant")
			return false
		case status == http.StatusNotFound && strings.Contains(detail, "not allowed"):
			if i == 0 {
				d.note("image", fmt.Sprintf("the server's allow and deny leave %s out", repository), "say with --image which image the server serves")
			}
		case status == http.StatusNotFound && code == "NAME_UNKNOWN":
			if i == 0 {
				d.note("image", fmt.Sprintf("the upstream has no public repository %s", repository), "say with --image which image it has")
			}
			return false
		default:
			return i == 0
		}
	}
	return false
}

// askManifest asks for a tag that doesn't exist, of a registry that it names as containerd does, or of
// Docker Hub without naming it. It returns the status of the answer, and the code and the detail of its
// error.
func (d *Doctor) askManifest(ctx context.Context, repository, registry string) (status int, code, detail string, err error) {
	base := d.mirror()
	u, err := url.Parse(base)
	if err != nil {
		return 0, "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	at := fmt.Sprintf("%s/v2/%s/manifests/hubcache-doctor-%d", base, repository, time.Now().UnixNano())
	if registry != "" {
		at += "?ns=" + url.QueryEscape(registry)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return 0, "", "", err
	}
	resp, err := d.pullClient(u.Host, true).Do(req) // whom Docker trusts is checked already
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, "", "", err
	}
	var answer struct {
		Errors []struct{ Code, Detail string }
	}
	_ = json.Unmarshal(body, &answer) // an answer without errors says nothing more
	if len(answer.Errors) > 0 {
		code, detail = answer.Errors[0].Code, answer.Errors[0].Detail
	}
	return resp.StatusCode, code, detail, nil
}

// repositoryOf is the repository of an image's name at Docker Hub.
func repositoryOf(image string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(image, "index."), "docker.io/")
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name = name[:i]
	}
	if !strings.Contains(name, "/") {
		name = "library/" + name
	}
	return name
}

// checkStart looks for what may have kept a server that doesn't answer from starting.
func (d *Doctor) checkStart() {
	for _, u := range d.running.Upstreams() {
		if u.Username != "" {
			d.checkTokenFile(u)
		}
	}
}

// checkTokenFile looks at a registry's access token as the server would when it starts.
func (d *Doctor) checkTokenFile(u settings.Upstream) {
	check, path := tokenCheck(u.Name), u.PasswordFile
	if !filepath.IsAbs(path) {
		service, err := InstalledService(d.Root)
		if err != nil {
			return
		}
		if path = service.credentialFile(path); path == "" {
			d.broken(check, service.whyNoCredential(u.PasswordFile).Error(), d.recipe(u.Name))
			return
		}
	}
	err := auth.NewFile(u.Username, path).Reload()
	fe, ok := errors.AsType[*auth.FileError](err)
	switch {
	case !ok:
		d.ok(check, "%s holds one", path)
	case fe.Fault == auth.FileMalformed:
		d.broken(check, fmt.Sprintf("%s %v; the server doesn't start with it", path, fe.Err), "put the access token into it, and nothing else")
	case fe.Fault == auth.FileUnreadable && errors.Is(fe.Err, os.ErrPermission):
		d.note(check, "this user may not look at "+path, "run doctor as root")
	default:
		d.broken(check, fmt.Sprintf("%s: %v", path, fe.Err), d.recipe(u.Name))
	}
}
