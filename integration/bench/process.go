package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// target is one server in one scenario. Without a process it is the Hub itself.
type target struct {
	name     string
	scenario string
	tls      bool // clients come by TLS
	bench    *bench
	url      string // to pull from
	process  *os.Process
	exited   chan struct{} // closed when the process is gone
	dir      string
}

// direct is the name of the target without a cache.
const direct = "direct"

// start starts the server with an empty cache.
func (t *target) start(ctx context.Context) error {
	if t.name == direct {
		t.url = t.bench.upstream.hub.RegistryURL()
		return nil
	}
	var p peer
	for _, p = range t.bench.peers {
		if p.name == t.name {
			break
		}
	}
	dir, err := os.MkdirTemp(t.bench.tmp, "data-")
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	t.dir = dir
	addr := "127.0.0.1:" + strconv.Itoa(port)
	args, err := p.prepare(dir, addr, t.tls)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
	// By default distribution 3 sends traces to a collector, which does not exist here.
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	// The server ends when this program ends, even when it is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	scheme := "http://"
	if t.tls {
		scheme = "https://"
	}
	t.url, t.process, t.exited = scheme+addr, cmd.Process, make(chan struct{})
	go func() { cmd.Wait(); close(t.exited) }()
	return t.ready(ctx, addr)
}

// ready waits until the server listens.
func (t *target) ready(ctx context.Context, addr string) error {
	for range 1000 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-t.exited:
			return errors.New("it ended before it listened")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return errors.New("it does not listen after 10 s")
}

// logTail is the end of what the server has logged.
func (t *target) logTail() []byte {
	b, err := os.ReadFile(filepath.Join(t.dir, "log"))
	if t.dir == "" || err != nil {
		return nil
	}
	return b[max(0, len(b)-2000):]
}

// stop ends the server and removes its data.
func (t *target) stop() {
	if t.process == nil {
		return
	}
	t.process.Signal(syscall.SIGTERM)
	select {
	case <-t.exited:
	case <-time.After(10 * time.Second):
		t.process.Kill()
		<-t.exited
	}
	t.process = nil
	os.RemoveAll(t.dir)
}

// freePort returns a port on which nothing listens.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// pids are the server's process and its children: nginx has workers.
func (t *target) pids() []int {
	if t.process == nil {
		return nil
	}
	all := []int{t.process.Pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", t.process.Pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil {
				all = append(all, pid)
			}
		}
	}
	return all
}

// cpu is the CPU time that the server has used.
func (t *target) cpu() time.Duration {
	const tick = time.Second / 100 // USER_HZ, the same on every Linux
	sum := 0
	for _, pid := range t.pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(b), ") ") // the name may hold blanks
		f := strings.Fields(rest)
		if len(f) < 13 {
			continue
		}
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		sum += user + system
	}
	return time.Duration(sum) * tick
}

// idle waits until the server has no work left after it was filled, such as a check of what
// it has just written.
func (t *target) idle() {
	for range 50 {
		before := t.cpu()
		time.Sleep(200 * time.Millisecond)
		if t.cpu() == before {
			return
		}
	}
}

// peak is the server's largest resident set since resetPeak, in bytes.
func (t *target) peak() int64 {
	sum := int64(0)
	for _, pid := range t.pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kb, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
				sum += kb << 10
			}
		}
	}
	return sum
}

func (t *target) resetPeak() {
	for _, pid := range t.pids() {
		os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}
