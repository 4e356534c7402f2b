package dockerhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// reload makes the daemon read its configuration again and waits until the engine says that
// the mirror is in force, or, if it was taken out, that it isn't.
func (s *Setup) reload(ctx context.Context, plan setupPlan) error {
	patience := s.patience()
	engine, err := s.Engine.Connect("docker setup")
	if err != nil {
		return err
	}
	defer engine.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	if err := plan.process.reload(); err != nil {
		return err
	}
	for {
		last := s.confirm(ctx, engine, plan, began)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return errors.New("interrupted before the engine had read its configuration again")
			}
			return fmt.Errorf("the engine didn't take the new configuration within %v: %w%s", patience, last, daemonLog(plan.process.pid, began))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// confirm is nil when the engine has what was written. If it had the same list before, only
// its own message of the reload can tell.
func (s *Setup) confirm(ctx context.Context, engine *client.Client, plan setupPlan, began time.Time) error {
	info, err := engine.Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	facts := factsOf(info.Info)
	switch has := facts.uses(s.Mirror); {
	case plan.want && !has:
		return fmt.Errorf("its mirrors are: %s", orNone(facts.mirrors))
	case !plan.want && has:
		return fmt.Errorf("it still has %s", s.Mirror)
	case plan.has == plan.want && !reloadedSince(ctx, engine, began):
		return errors.New("it sent no message that it has read its configuration")
	}
	return nil
}

// reloadedSince reports whether the engine has read its configuration again since then.
func reloadedSince(ctx context.Context, engine *client.Client, since time.Time) bool {
	stamp := func(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := engine.Events(ctx, client.EventsListOptions{Since: stamp(since), Until: stamp(time.Now()),
		Filters: make(client.Filters).Add("type", string(events.DaemonEventType)).Add("event", string(events.ActionReload))})
	select {
	case <-stream.Messages:
		return true
	case <-stream.Err:
		return false
	}
}

// daemonLog is what the daemon has logged as an error since then, if the journal has it; if
// not, it says where to look.
func daemonLog(pid int, since time.Time) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "journalctl", "--quiet", "--output=cat", fmt.Sprintf("_PID=%d", pid),
		fmt.Sprintf("--since=@%d", since.Unix())).Output() // no journal: then there is no line either
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte("level=error")) || bytes.Contains(line, []byte("unable to")) {
			return ". It logged: " + strings.TrimSpace(string(line))
		}
	}
	return ". The daemon's log says why (journalctl -u docker)"
}
