package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const layerSize = 4 << 20

// aHub is a Hub with one image of one layer, which comes from a CDN of that bandwidth.
func aHub(t *testing.T, bandwidth int64) (hub *hubtest.Hub, img *hubtest.Image) {
	t.Helper()
	hub = hubtest.New(hubtest.Options{Bandwidth: bandwidth})
	t.Cleanup(hub.Close)
	img = hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, layerSize)})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	return hub, img
}

// pulling starts a pull of the image's layer and returns it when it has begun.
func (p *process) pulling(img *hubtest.Image) io.ReadCloser {
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

// TestStopLetsPullsEnd: after SIGTERM nobody new gets in, a running pull goes on to its
// end, stats answer and /readyz doesn't.
func TestStopLetsPullsEnd(t *testing.T) {
	hub, img := aHub(t, 2<<20)
	p := serving(t, "upstream: {url: '"+hub.RegistryURL()+"'}\n")
	body := p.pulling(img)
	defer body.Close()
	p.signal(syscall.SIGTERM)
	p.awaitLog("stopping")
	eventually(t, "/readyz is 503", func() bool { status, _ := p.get(p.admin + "/readyz"); return status == http.StatusServiceUnavailable })
	if n := len(p.stats().Inflight); n != 1 {
		t.Errorf("stats show %d downloads", n)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(p.pull, "http://")); err == nil {
		c.Close()
		t.Error("new clients still get in")
	}
	rest, err := io.ReadAll(body)
	if err != nil || len(rest) != layerSize-4096 {
		t.Errorf("the pull ended after %d bytes: %v", len(rest)+4096, err)
	}
	p.ends(10*time.Second, 0)
}

// TestSecondSignalStopsAtOnce, although a pull hangs.
func TestSecondSignalStopsAtOnce(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			hub, img := aHub(t, 0)
			hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(64<<10))
			p := serving(t, "upstream: {url: '"+hub.RegistryURL()+"'}\n")
			body := p.pulling(img)
			defer body.Close()
			p.signal(syscall.SIGTERM)
			p.awaitLog("stopping")
			select {
			case <-p.ended:
				t.Fatal("it didn't wait for the pull")
			case <-time.After(time.Second):
			}
			p.signal(sig)
			p.ends(3*time.Second, 0)
			if _, err := io.ReadAll(body); err == nil {
				t.Error("half a body ended as if it were whole")
			}
		})
	}
}

// TestStartNeedsNoUpstream: with an upstream that accepts connections and says nothing the
// server is ready at once.
func TestStartNeedsNoUpstream(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	start := time.Now()
	p := serving(t, "upstream: {url: 'http://"+silent.Addr().String()+"'}\n")
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, _ := p.get(p.admin + path); status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := p.get(p.pull + "/v2/"); status != http.StatusOK {
		t.Errorf("/v2/: %d", status)
	}
	if took := time.Since(start); took > 6*time.Second { // promised: 2 s
		t.Errorf("ready after %s", took)
	}
}

// TestPortInUse says so before anything else is said.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := unborn(t, "listen: "+l.Addr().String()+"\n").run()
	if code := exitCodeOf(t, err); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(out, l.Addr().String()) || !strings.Contains(out, "already in use") {
		t.Errorf("it says: %s", out)
	}
}

// TestWatchEndsWithCtrlC, which is no failure; until then the table comes again and again.
func TestWatchEndsWithCtrlC(t *testing.T) {
	p := serving(t, "")
	cmd := exec.Command("hubcache", "stats", "--watch=50ms", "--admin", p.admin)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	out, tables := bufio.NewReader(stdout), 0
	for tables < 3 {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("it ended after %d tables: %v", tables, err)
		}
		if strings.HasPrefix(line, "hit ratio") {
			tables++
		}
		if strings.Contains(line, "\x1b") {
			t.Errorf("a pipe is written on as if it were a terminal: %q", line)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if code := exitCodeOf(t, cmd.Wait()); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
