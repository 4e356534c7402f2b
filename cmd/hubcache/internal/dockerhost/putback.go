package dockerhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/client"
)

// lastWait is how long an engine that doesn't answer is waited for when the old files are back.
const lastWait = time.Minute

// patience is how long the engine may take until it has what was written.
func (s *Setup) patience() time.Duration {
	if s.Patience == 0 {
		return 15 * time.Second
	}
	return s.Patience
}

// putBack takes the changes back, and makes the daemon have the mirrors that it had before. An engine
// that is late, or an interrupted run, may have taken the new ones in the meantime. It returns why the
// changes were taken back, and what came of it.
func (s *Setup) putBack(ctx context.Context, plan setupPlan, done []written, why error) error {
	if len(done) == 0 {
		return why
	}
	if err := undoAll(done); err != nil {
		return errors.Join(why, fmt.Errorf("the old files could not be put back: %w", err))
	}
	began := time.Now()
	if err := plan.process.reload(); err != nil {
		return errors.Join(fmt.Errorf("%w. The old files were put back", why), err)
	}
	fmt.Fprintln(s.Out, "The old files were put back; waiting for the engine to have read them.")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWait)
	defer cancel()
	if err := s.restoreMirrors(ctx, plan, began); err != nil {
		return fmt.Errorf("%w. The old files were put back, but until it is restarted the engine may not have the mirrors that it had before: %w", why, err)
	}
	return fmt.Errorf("%w. The old files were put back, and the engine was told", why)
}

// restoreMirrors waits until the engine has the list of mirrors that it had, after it was told to read
// the old file at that time. If the old file has no list, the engine keeps the one that it has: then
// it gets the old one by a file that is there for a moment.
func (s *Setup) restoreMirrors(ctx context.Context, plan setupPlan, told time.Time) error {
	engine, err := s.Engine.Connect("docker setup")
	if err != nil {
		return err
	}
	defer engine.Close()
	file, err := readState(plan.config)
	if err != nil {
		return err
	}
	config, err := parseDaemonJSON(file.body)
	if err != nil {
		return nil // the engine refuses it, and has kept what it had
	}
	noList := config.end == 0
	has, err := s.waitForMirrors(ctx, engine, plan.has, noList, told)
	if err != nil {
		return err
	}
	if has == plan.has || !noList {
		return nil
	}
	list, err := json.Marshal(append([]string{}, plan.mirrors...))
	if err != nil {
		return err
	}
	moment, err := file.replace(config.splice(string(list)))
	if err != nil {
		return err
	}
	told = time.Now()
	if err = plan.process.reload(); err == nil {
		has, err = s.waitForMirrors(ctx, engine, plan.has, false, told)
	}
	if err == nil && has != plan.has {
		err = errors.New("it didn't take them back in time")
	}
	return errors.Join(err, moment.undo(), plan.process.reload())
}

// waitForMirrors waits until the engine has the mirror or hasn't, as is wanted, and has read its file
// since it was told to. One that has what is wanted and says nothing of its file is believed after a
// while. With atOnce it returns too when it has what isn't wanted. When ctx ends, it returns what the
// engine said last. An error means that it said nothing.
func (s *Setup) waitForMirrors(ctx context.Context, engine *client.Client, want, atOnce bool, told time.Time) (has bool, err error) {
	err = errors.New("the engine doesn't answer")
	believe := time.Now().Add(s.patience())
	for {
		if info, askErr := engine.Info(ctx, client.InfoOptions{}); askErr == nil {
			has, err = factsOf(info.Info).uses(s.Mirror), nil
			switch {
			case has != want && atOnce, has == want && reloadedSince(ctx, engine, told), has == want && time.Now().After(believe):
				return has, nil
			}
		}
		select {
		case <-ctx.Done():
			return has, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
