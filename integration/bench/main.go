// Bench measures hubcache and other caches in front of the same fake Docker Hub, and writes
// the results into docs/evidence/performance.md.
//
//	go run ./integration/bench          all scenarios, several rounds: an hour
//	go run ./integration/bench -quick   smaller blobs, fewer runs, to the terminal: five minutes
//
// The servers take turns within each round (A B A B), so that a machine that is busy for a
// minute slows all of them, and each round begins with another server. The Hub counts bytes
// and requests, and the kernel CPU time and memory; no figure comes from the server under
// test.
//
// It needs the Debian packages nginx-light, docker-registry and wrk, and Go's module proxy
// the first time, for distribution 3.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.BoolVar(&o.quick, "quick", false, "smaller and fewer runs; writes no file")
	flag.IntVar(&o.runs, "runs", 0, "rounds of each scenario (default 5, quick 1)")
	flag.StringVar(&o.binary, "hubcache", "", "hubcache `program` to measure (default: built from this tree)")
	flag.StringVar(&o.only, "only", "", "scenarios, separated by commas (default all; writes no file)")
	flag.StringVar(&o.servers, "servers", "", "servers, separated by commas (default all; writes no file)")
	flag.StringVar(&o.dir, "dir", "", "`folder` for data: 8 GiB on a real disk (default the temporary directory)")
	flag.StringVar(&o.docs, "docs", "docs/evidence", "`folder` of performance.md")
	flag.Parse()
	if err := run(ctx, o, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

type options struct {
	quick                            bool
	runs                             int
	binary, only, servers, dir, docs string
}

// bench is one run of the program.
type bench struct {
	options
	log      io.Writer
	tmp      string
	wrk      string
	upstream *upstream
	peers    []peer
	results  results
}

func run(ctx context.Context, o options, log io.Writer) error {
	if o.runs == 0 {
		o.runs = 5
		if o.quick {
			o.runs = 1
		}
	}
	tmp, err := os.MkdirTemp(o.dir, "hubcache-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b := &bench{options: o, log: log, tmp: tmp, results: results{}}
	programs, err := findPrograms(ctx, o.binary, tmp, log)
	if err != nil {
		return err
	}
	fmt.Fprintln(log, "making images")
	if b.upstream, err = newUpstream(o.quick); err != nil {
		return err
	}
	defer b.upstream.hub.Close()
	b.peers, b.wrk = peers(programs, b.upstream), programs.wrk
	start := time.Now()
	for _, s := range scenarios(b) {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), s.name) {
			continue
		}
		if err := b.runScenario(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	took := time.Since(start).Round(time.Second)
	if o.quick || o.only != "" || o.servers != "" {
		b.results.table(os.Stdout, names(b.peers))
		fmt.Fprintln(log, "took", took)
		return nil
	}
	return b.publish(took)
}

// selected reports whether the server is to be measured.
func (b *bench) selected(server string) bool {
	return b.servers == "" || slices.Contains(strings.Split(b.servers, ","), server)
}

// runScenario measures all servers of one scenario in turn, in as many rounds as requested.
func (b *bench) runScenario(ctx context.Context, s scenario) error {
	b.upstream.set(s.upstream)
	var all []*target
	defer func() {
		for _, t := range all {
			t.stop()
		}
	}()
	for _, name := range s.servers {
		if !b.selected(name) {
			continue
		}
		all = append(all, &target{name: name, bench: b, scenario: s.name, tls: s.tls})
	}
	for n := range b.runs {
		for i := range all {
			t := all[(i+n)%len(all)]
			if n > 0 && slices.Contains(s.once, t.name) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := b.measure(ctx, s, t); err != nil {
				return fmt.Errorf("%s: %w\nthe end of its log:\n%s", t.name, err, t.logTail())
			}
		}
	}
	return nil
}

func (b *bench) measure(ctx context.Context, s scenario, t *target) error {
	if s.cold || t.process == nil {
		t.stop()
		if !b.quick {
			if err := b.settle(); err != nil {
				return err
			}
		}
		if err := t.start(ctx); err != nil {
			return err
		}
		if s.warm != nil {
			if err := s.warm(ctx, t); err != nil {
				return fmt.Errorf("warming up: %w", err)
			}
			t.idle()
		}
	}
	if err := b.upstream.quiet(ctx); err != nil {
		return err
	}
	b.upstream.hub.ResetLedger()
	values, err := s.measure(ctx, t)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.log, "%-14s %-13s %s\n", s.name, t.name, values)
	for k, v := range values {
		b.results.add(s.name, t.name, k, v)
	}
	if s.cold {
		t.stop()
	}
	return nil
}

// settle makes all runs begin in the same state: what the run before wrote is on the disk, and
// the memory that it freed is available. The host of a virtual machine takes free memory back
// within seconds, and without this the next server's writes would take several times as long
// as they should.
func (b *bench) settle() error {
	const memory = 2 << 30 // more than a run fills
	unix.Sync()
	f, err := os.CreateTemp(b.tmp, "settle-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	buf := make([]byte, 256<<10)
	for range memory / len(buf) {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// programs are the servers' executables.
type programs struct{ hubcache, registry2, registry3, nginx, wrk string }

// registry3 is built from source, since Debian has only version 2.
const registry3 = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"

// findPrograms finds or builds the programs that are measured.
func findPrograms(ctx context.Context, hubcache, tmp string, log io.Writer) (p programs, err error) {
	for _, look := range []struct {
		to       *string
		name, in string
	}{
		{&p.nginx, "nginx", "nginx-light"},
		{&p.registry2, "docker-registry", "docker-registry"},
		{&p.wrk, "wrk", "wrk"},
	} {
		// A user's PATH may lack the folder of daemons.
		if *look.to, err = exec.LookPath(look.name); err != nil {
			if *look.to, err = exec.LookPath(filepath.Join("/usr/sbin", look.name)); err != nil {
				return p, fmt.Errorf("%s is missing: install the Debian package %s", look.name, look.in)
			}
		}
	}
	if p.hubcache, err = filepath.Abs(hubcache); err != nil {
		return p, err
	}
	if hubcache == "" {
		p.hubcache = filepath.Join(tmp, "hubcache")
		if err := goTool(ctx, log, nil, "build", "-trimpath", "-o", p.hubcache, "./cmd/hubcache"); err != nil {
			return p, err
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return p, err
	}
	bin := filepath.Join(cache, "hubcache-bench", "v3.1.2")
	p.registry3 = filepath.Join(bin, "registry")
	if _, err := os.Stat(p.registry3); err != nil {
		fmt.Fprintln(log, "building", registry3)
		if err := goTool(ctx, log, []string{"GOBIN=" + bin}, "install", registry3); err != nil {
			return p, err
		}
	}
	return p, nil
}

func goTool(ctx context.Context, log io.Writer, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), append(env, "CGO_ENABLED=0")...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// machine describes the machine that was measured.
func machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	var u syscall.Utsname
	release := ""
	if syscall.Uname(&u) == nil {
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			release += string(rune(c))
		}
	}
	return fmt.Sprintf("%d CPUs (%s), Linux %s, %s", runtime.NumCPU(), model, release, runtime.Version())
}
