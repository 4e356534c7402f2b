package prune

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/client"
)

// limits say how long the Engine may take for an answer.
type limits struct{ question, deletion time.Duration }

var (
	// defaultLimits are far more than the Engine needs when its disk is slow: it lists a
	// thousand images in seconds, and removes the largest layers in a minute or two.
	defaultLimits = limits{question: 5 * time.Minute, deletion: 10 * time.Minute}

	// errSilent means that the Engine has taken a request and not answered it.
	errSilent = errors.New("the engine does not answer")
)

// boundedEngine ends every call that the Engine doesn't answer in time, with errSilent. Only a
// stream of events that has begun and has no end goes on.
type boundedEngine struct {
	engine Engine
	limits limits
}

// bounded makes one call.
func bounded[T any](ctx context.Context, limit time.Duration, what string, call func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := call(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return answer, silence(what, limit)
	}
	return answer, err
}

func (e boundedEngine) Info(ctx context.Context, o client.InfoOptions) (client.SystemInfoResult, error) {
	return bounded(ctx, e.limits.question, "about itself", func(ctx context.Context) (client.SystemInfoResult, error) {
		return e.engine.Info(ctx, o)
	})
}

func (e boundedEngine) ImageList(ctx context.Context, o client.ImageListOptions) (client.ImageListResult, error) {
	return bounded(ctx, e.limits.question, "for its images", func(ctx context.Context) (client.ImageListResult, error) {
		return e.engine.ImageList(ctx, o)
	})
}

func (e boundedEngine) ImageInspect(ctx context.Context, id string, o ...client.ImageInspectOption) (client.ImageInspectResult, error) {
	return bounded(ctx, e.limits.question, "about an image", func(ctx context.Context) (client.ImageInspectResult, error) {
		return e.engine.ImageInspect(ctx, id, o...)
	})
}

func (e boundedEngine) ImageHistory(ctx context.Context, id string, o ...client.ImageHistoryOption) (client.ImageHistoryResult, error) {
	return bounded(ctx, e.limits.question, "about the history of an image", func(ctx context.Context) (client.ImageHistoryResult, error) {
		return e.engine.ImageHistory(ctx, id, o...)
	})
}

func (e boundedEngine) DiskUsage(ctx context.Context, o client.DiskUsageOptions) (client.DiskUsageResult, error) {
	return bounded(ctx, e.limits.question, "for the disk usage", func(ctx context.Context) (client.DiskUsageResult, error) {
		return e.engine.DiskUsage(ctx, o)
	})
}

func (e boundedEngine) ImageRemove(ctx context.Context, ref string, o client.ImageRemoveOptions) (client.ImageRemoveResult, error) {
	return bounded(ctx, e.limits.deletion, "to delete "+ref+" (and may still do it)", func(ctx context.Context) (client.ImageRemoveResult, error) {
		return e.engine.ImageRemove(ctx, ref, o)
	})
}

func (e boundedEngine) ContainerList(ctx context.Context, o client.ContainerListOptions) (client.ContainerListResult, error) {
	return bounded(ctx, e.limits.question, "for its containers", func(ctx context.Context) (client.ContainerListResult, error) {
		return e.engine.ContainerList(ctx, o)
	})
}

func (e boundedEngine) ContainerInspect(ctx context.Context, id string, o client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	return bounded(ctx, e.limits.question, "about a container", func(ctx context.Context) (client.ContainerInspectResult, error) {
		return e.engine.ContainerInspect(ctx, id, o)
	})
}

func (e boundedEngine) ServiceList(ctx context.Context, o client.ServiceListOptions) (client.ServiceListResult, error) {
	return bounded(ctx, e.limits.question, "for its services", func(ctx context.Context) (client.ServiceListResult, error) {
		return e.engine.ServiceList(ctx, o)
	})
}

func (e boundedEngine) TaskList(ctx context.Context, o client.TaskListOptions) (client.TaskListResult, error) {
	return bounded(ctx, e.limits.question, "for its tasks", func(ctx context.Context) (client.TaskListResult, error) {
		return e.engine.TaskList(ctx, o)
	})
}

// Events bounds how long a stream takes to begin, and all of one that has an end.
func (e boundedEngine) Events(ctx context.Context, o client.EventsListOptions) client.EventsResult {
	inner, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(e.limits.question, cancel)
	stream := e.engine.Events(inner, o) // returns when the Engine has begun to answer
	if o.Until == "" {
		late.Stop()
	}
	end := make(chan error, 1)
	go func() {
		defer cancel()
		defer late.Stop()
		err := <-stream.Err
		if err != nil && inner.Err() != nil && ctx.Err() == nil {
			err = silence("for events", e.limits.question)
		}
		end <- err
	}()
	return client.EventsResult{Messages: stream.Messages, Err: end}
}

// silence is the error for people.
func silence(what string, limit time.Duration) error {
	return fmt.Errorf("%w: it was asked %s %v ago; see whether it hangs (docker info), and its log", errSilent, what, limit)
}
