package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const layerSize = 4 << 20

// newHub returns a Hub with one image, which has one layer.
func newHub(t *testing.T) (hub *hubtest.Hub, img *hubtest.Image) {
	t.Helper()
	hub = hubtest.New(hubtest.Options{})
	t.Cleanup(hub.Close)
	img = hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, layerSize)})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	return hub, img
}

// startPull starts a pull of the image's layer and returns its body when the first bytes
// have come.
func (p *process) startPull(img *hubtest.Image) io.ReadCloser {
	p.t.Helper()
	if status, _ := p.get(p.pull + "/v2/library/redis/manifests/7"); status != http.StatusOK {
		p.t.Fatalf("manifest: %d", status)
	}
	for _, b := range img.Blobs() {
		if b.Size != layerSize {
			continue
		}
		resp, err := http.Get(p.pull + "/v2/library/redis/blobs/" + b.Digest.String())
		if err != nil {
			p.t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			p.t.Fatalf("blob: %s", resp.Status)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 4096)); err != nil {
			p.t.Fatal(err)
		}
		return resp.Body
	}
	p.t.Fatal("the image has no layer")
	return nil
}

// heldBack returns the URL of a server that answers as upstream does. It holds back all but the
// first 64 KiB of blobs until goOn is called, so that a pull is still running however long a test
// takes to look at it.
func heldBack(t *testing.T, upstream string) (base string, goOn func()) {
	t.Helper()
	to, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	going := make(chan struct{})
	goOn = sync.OnceFunc(func() { close(going) })
	srv := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		FlushInterval: -1,
		ModifyResponse: func(resp *http.Response) error {
			if strings.Contains(resp.Request.URL.Path, "/blobs/") {
				resp.Body = &heldBody{resp.Body, 64 << 10, going}
			}
			return nil
		},
	})
	t.Cleanup(func() {
		goOn()
		srv.Close()
	})
	return srv.URL, goOn
}

// heldBody holds back what comes after so many bytes until going is closed.
type heldBody struct {
	io.ReadCloser
	first int
	going <-chan struct{}
}

func (b *heldBody) Read(p []byte) (int, error) {
	if b.first <= 0 {
		<-b.going
		return b.ReadCloser.Read(p)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.first)])
	b.first -= n
	return n, err
}

// TestStopLetsPullsEnd: after SIGTERM no new client can connect, a running pull ends
// whole, stats are answered, and /readyz is 503.
func TestStopLetsPullsEnd(t *testing.T) {
	hub, img := newHub(t)
	hub.Set(func(o *hubtest.Options) { o.InlineBlobs = 1 << 30 })
	upstream, goOn := heldBack(t, hub.RegistryURL())
	p := startServer(t, "upstream: {url: '"+upstream+"'}\n")
	body := p.startPull(img)
	defer body.Close()
	p.signal(syscall.SIGTERM)
	p.awaitLog("stopping")
	eventually(t, "/readyz is 503", func() bool { status, _ := p.get(p.admin + "/readyz"); return status == http.StatusServiceUnavailable })
	eventually(t, "stats show one download", func() bool { return len(p.stats().Inflight) == 1 }) // what is read ahead has ended
	if c, err := net.Dial("tcp", strings.TrimPrefix(p.pull, "http://")); err == nil {
		c.Close()
		t.Error("new clients still get in")
	}
	goOn()
	rest, err := io.ReadAll(body)
	if err != nil || len(rest) != layerSize-4096 {
		t.Errorf("the pull ended after %d bytes: %v", len(rest)+4096, err)
	}
	p.ends(0)
}

// TestSecondSignalStopsAtOnce: a pull that hangs doesn't keep the server alive.
func TestSecondSignalStopsAtOnce(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			hub, img := newHub(t)
			hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(64<<10))
			p := startServer(t, "upstream: {url: '"+hub.RegistryURL()+"'}\n")
			body := p.startPull(img)
			defer body.Close()
			p.signal(syscall.SIGTERM)
			p.awaitLog("stopping")
			select {
			case <-p.ended:
				t.Fatal("it didn't wait for the pull")
			case <-time.After(time.Second):
			}
			again := time.Now()
			p.signal(sig)
			p.ends(0)
			if took := time.Since(again); took > 15*time.Second { // pulls may take 30 s otherwise
				t.Errorf("it ended after %s", took)
			}
			if _, err := io.ReadAll(body); err == nil {
				t.Error("half a body ended as if it were whole")
			}
		})
	}
}

// TestClosedTerminalStopsTheServer: SIGHUP reloads, but when it comes because the
// terminal was closed, it ends the server, which would go on unseen otherwise.
func TestClosedTerminalStopsTheServer(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "admin.sock")
	cmd := exec.Command("script", "-qfec", "echo $$; exec hubcache serve", "/dev/null")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TERM=xterm", "HUBCACHE_CONFIG=/dev/null", "HUBCACHE_DATA_DIR=" + filepath.Join(dir, "data"),
		"HUBCACHE_LISTEN=127.0.0.1:0", "HUBCACHE_ADMIN_LISTEN=unix:" + sock, "HUBCACHE_UPSTREAM=http://127.0.0.1:1"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("script (of util-linux, or bsdutils) gives the test a terminal: %v", err)
	}
	var pid int
	if _, err := fmt.Fscanln(bufio.NewReader(stdout), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	healthy := func() bool {
		resp, err := (&http.Client{Transport: overSocket(sock)}).Get("http://localhost/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	eventually(t, "the server runs", healthy)
	if err := cmd.Process.Kill(); err != nil { // this closes the terminal too
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// Its socket is gone before its last files are written.
	eventually(t, "the server has ended", func() bool { return hasEnded(pid) })
	if _, err := os.Stat(sock); err == nil || healthy() {
		t.Error("its socket is still there")
	}
}

// TestWarmEndsWithCtrlC: soon, with one clear line; the server stops its work, and the next warm goes
// on.
func TestWarmEndsWithCtrlC(t *testing.T) {
	h := hubtest.New(hubtest.Options{})
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	h.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 8<<20)})
	rule := h.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(1<<20))
	p := startServer(t, "upstream: {url: '"+h.RegistryURL()+"'}\n")
	cmd := exec.Command("hubcache", "warm", "app:1", "--admin", p.admin)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	lines.Scan() // the image's size is known, and its layer is on its way
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var last string
	for lines.Scan() {
		last = lines.Text()
	}
	if err := cmd.Wait(); exitCodeOf(t, err) != 1 || last != "hubcache: interrupted; what has come is kept, and the same command goes on from there" {
		t.Errorf("%v: %q", err, last)
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if _, stats := p.get(p.admin + "/api/v1/stats"); strings.Contains(stats, `"inflight": []`) {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("the server goes on")
		}
	}
	rule.Remove()
	if out, err := exec.Command("hubcache", "warm", "app:1", "--admin", p.admin).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
