package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// TestMain makes the test binary behave as the program when it is called "hubcache", and lets
// the tests' own requests reach loopback addresses only.
func TestMain(m *testing.M) {
	hubtest.LoopbackOnly(http.DefaultTransport.(*http.Transport))
	testscript.Main(m, map[string]func(){"hubcache": main})
}

// TestScripts runs the command lines in testdata/script against the program.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HUBCACHE_CONFIG", "/dev/null") // not the file of this machine
			env.Setenv("STATE_DIRECTORY", filepath.Join(env.WorkDir, "state"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "ready": ready, "cached": cached, "hub": hub, "spoil": spoil},
	})
}

// exits is "exits CODE COMMAND ARG…": the command has to end with that code. Its output is
// in the files out and err.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command [arg…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	path, err := exec.LookPath(filepath.Join(binDir(ts), args[1]))
	ts.Check(err)
	out, err := os.Create(ts.MkAbs("out"))
	ts.Check(err)
	defer out.Close()
	errs, err := os.Create(ts.MkAbs("err"))
	ts.Check(err)
	defer errs.Close()
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), out, errs
	for _, name := range []string{"HUBCACHE_CONFIG", "STATE_DIRECTORY", "HUBCACHE_ADMIN", "HUBCACHE_BUDGET", "HUBCACHE_SETTINGS", "HUBCACHE_USERNAME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "PATH"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	_ = cmd.Run() // the exit code is checked below
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("%s: exit code %d, want %d\n%s%s", strings.Join(args[1:], " "), got, want, ts.ReadFile("out"), ts.ReadFile("err"))
	}
}

// binDir is where testscript puts the program.
func binDir(ts *testscript.TestScript) string {
	dir, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	return dir
}

// cached is "cached DIR REFERENCE SIZE…": it puts an image with layers of these sizes, in bytes, into
// the data directory. The same size is the same layer, also in other images. A size with a - in
// front is a layer that is missing. The digest of the manifest is in $DIGEST.
func cached(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: cached dir reference size…")
	}
	s, err := storage.Open(storage.Options{Dir: ts.MkAbs(args[0]), Budget: 1 << 30, Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	repository, untagged := strings.CutSuffix(args[1], "@")
	ref, err := name.ParseReference(repository)
	ts.Check(err)
	if untagged {
		ref.Tag = ""
	}
	from := storage.Origin{Repository: ref.Repository}
	var layers []string
	for _, arg := range args[2:] {
		size, err := strconv.Atoi(arg)
		ts.Check(err)
		layer := bytes.Repeat([]byte("."), max(size, -size))
		d := digest.FromBytes(layer)
		layers = append(layers, fmt.Sprintf(`{"digest":%q,"size":%d}`, d, len(layer)))
		in, err := s.Begin(from, d, int64(len(layer)))
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		ts.Check(err)
		_, err = in.WriteAt(layer, 0)
		ts.Check(err)
		ts.Check(in.Commit())
		if size < 0 {
			s.Remove(d)
		}
	}
	body := fmt.Appendf(nil, `{"schemaVersion":2,"annotations":{"name":%q},"layers":[%s]}`, ref.Repository, strings.Join(layers, ","))
	d := digest.FromBytes(body)
	ts.Check(s.PutManifest(from, d, v1.MediaTypeImageManifest, body))
	if ref.Tag != "" {
		s.SetTag(ref.Repository, ref.Tag, storage.Tag{Digest: d, MediaType: v1.MediaTypeImageManifest, Size: int64(len(body)), Checked: time.Now()})
	}
	ts.Check(s.Close())
	ts.Setenv("DIGEST", d.String())
	ts.Setenv("SHORT", args[1]+shortDigestOf(d.String()))
}

// spoil is "spoil DIR SIZE": one byte of the file of the layer of that size, which cached has made,
// is another one. Its length and times stay.
func spoil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: spoil dir size")
	}
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	layer := bytes.Repeat([]byte("."), size)
	hex := digest.FromBytes(layer).Encoded()
	path := filepath.Join(ts.MkAbs(args[0]), "blobs", "sha256", hex[:2], hex)
	fi, err := os.Stat(path)
	ts.Check(err)
	layer[size/2] = '!'
	ts.Check(errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, layer, 0o600), os.Chtimes(path, time.Time{}, fi.ModTime()), os.Chmod(path, fi.Mode())))
}

// ready is "ready SOCKET": it waits until the admin listener there says that it is.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", ts.MkAbs(args[0]))
	}}}
	for began := time.Now(); time.Since(began) < patience; time.Sleep(20 * time.Millisecond) {
		if resp, err := client.Get("http://localhost/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
	}
	ts.Fatalf("nothing is ready at %s within %s", args[0], patience)
}

// hub is "hub [limit=N] IMAGE=SIZE…": it starts a fake Docker Hub, whose URL is in $HUB, with images
// of one layer of so many bytes. limit is how many pulls it allows.
func hub(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: hub [limit=n] image=size…")
	}
	o := hubtest.Options{}
	if len(args) > 0 {
		if limit, ok := strings.CutPrefix(args[0], "limit="); ok {
			n, err := strconv.Atoi(limit)
			ts.Check(err)
			o.AnonymousLimit, args = n, args[1:]
		}
	}
	h := hubtest.New(o)
	ts.Check(h.Start())
	ts.Defer(h.Close)
	for _, arg := range args {
		image, size, _ := strings.Cut(arg, "=")
		ref, err := name.ParseReference(image)
		ts.Check(err)
		n, err := strconv.ParseInt(size, 10, 64)
		ts.Check(err)
		h.AddImage(strings.TrimPrefix(ref.Repository, "docker.io/"), ref.Tag, hubtest.ImageSpec{Layers: hubtest.Layers(1, n)})
	}
	ts.Setenv("HUB", h.RegistryURL())
}
