package tier

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/tier/bucket"
)

// uploaders is how many uploads go on at one time. Nobody waits for them, and clients and the
// upstream need the network too.
const uploaders = 2

// errNotHere: the store hasn't got what is to be uploaded.
var errNotHere = errors.New("it isn't in the store")

// errDropping: an object of that name is being deleted.
var errDropping = errors.New("an object with wrong bytes is being deleted")

// upload is a blob or manifest that the bucket is to have. It is also what a file has of it.
type upload struct {
	Schema     int           `json:"schema"`
	Kind       fetch.Kind    `json:"kind"`
	Repository string        `json:"repository"` // with the registry
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"media_type,omitempty"`
	ID         string        `json:"upload,omitempty"` // of the bucket, for an upload in parts

	next  time.Time // when to try
	until time.Time // when to give up while it isn't in the store
}

// uploads are what isn't in the bucket yet, each in a file of its own, so that a restart goes on with
// them. All methods are safe for concurrent use.
type uploads struct {
	t    *Tier
	dir  string
	wake chan struct{} // has one element when the queue has changed

	mu    sync.Mutex         // guards what follows. Files are written without it
	all   map[string]*upload // by the name of the object
	queue uploadQueue        // those of all that nobody works at
}

// newUploads reads what an earlier process has left.
func newUploads(t *Tier, dir string) (*uploads, error) {
	u := &uploads{t: t, dir: dir, wake: make(chan struct{}, 1), all: map[string]*upload{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the folder of uploads: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the folder of uploads: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if !strings.HasSuffix(f.Name(), ".json") {
			os.Remove(path) // a file that was being written
			continue
		}
		b, err := os.ReadFile(path)
		up := &upload{}
		if err == nil {
			err = json.Unmarshal(b, up)
		}
		if up.Schema > schema {
			return nil, fmt.Errorf("%s is of version %d, and this program knows %d: install the newer program again, or remove the file", path, up.Schema, schema)
		}
		if err != nil || up.Digest.Validate() != nil || path != u.file(up) || up.Kind != fetch.Blobs && up.Kind != fetch.Manifests {
			t.log.Warn("a file of an upload can't be read, and is removed", "file", path, "error", err)
			os.Remove(path)
			continue
		}
		up.next, up.until = time.Now(), time.Now()
		u.all[up.name()] = up
		heap.Push(&u.queue, up)
	}
	return u, nil
}

func (u *uploads) file(up *upload) string {
	return filepath.Join(u.dir, string(up.Kind)+"-"+string(up.Digest.Algorithm())+"-"+up.Digest.Encoded()+".json")
}

func (u *uploads) len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.all)
}

// add puts an upload into the queue, to be done after a while. Of what is there already
// only the repository is new.
func (u *uploads) add(up upload, after time.Duration) {
	if u.t.bucket == nil || u.t.ctx.Err() != nil {
		return
	}
	up.Schema, up.next = schema, time.Now().Add(after)
	up.until = up.next.Add(u.t.pace.arrive)
	u.mu.Lock()
	old := u.all[up.name()]
	if old == nil {
		u.all[up.name()] = &up
	}
	u.mu.Unlock()
	if old != nil {
		if old.Repository != up.Repository {
			u.t.soon(func(ctx context.Context) { u.t.writeLink(ctx, up.Repository, up.Digest) })
		}
		return
	}
	u.save(&up)
	u.requeue(&up, up.next)
}

// save writes the file of an upload. If that fails, a restart forgets the upload.
func (u *uploads) save(up *upload) {
	b, err := json.Marshal(up)
	file := u.file(up)
	if err == nil {
		err = os.WriteFile(file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		u.t.log.Warn("an upload can't be written down; a restart would forget it", "error", err)
	}
}

// requeue puts an upload that nobody works at into the queue.
func (u *uploads) requeue(up *upload, next time.Time) {
	u.mu.Lock()
	up.next = next
	heap.Push(&u.queue, up)
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// take waits for the next upload whose time has come. It returns nil at the end.
func (u *uploads) take() *upload {
	for {
		wait := time.Hour
		u.mu.Lock()
		if len(u.queue) > 0 {
			if wait = time.Until(u.queue[0].next); wait <= 0 {
				up := heap.Pop(&u.queue).(*upload)
				u.mu.Unlock()
				return up
			}
		}
		u.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-u.t.ctx.Done():
			timer.Stop()
			return nil
		case <-u.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// work uploads one after the other until the end.
func (u *uploads) work() {
	for up := u.take(); up != nil && u.t.ctx.Err() == nil; up = u.take() {
		err := u.send(u.t.ctx, up)
		now := time.Now()
		switch {
		case err == nil:
			u.t.evictor.use(up.name())
			u.forget(up)
			u.t.holds.uploaded(up.Digest)
		case errors.Is(err, errNotHere) && now.After(up.until):
			u.drop(up)
		case errors.Is(err, errNotHere): // it is about to come in
			u.requeue(up, now.Add(u.t.pace.again/5))
		default:
			u.t.log.Debug("an upload into the bucket failed", "digest", up.Digest, "error", err)
			u.requeue(up, now.Add(u.t.pace.again))
		}
	}
}

// forget removes an upload that has ended.
func (u *uploads) forget(up *upload) {
	os.Remove(u.file(up))
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.all, up.name())
}

// drop gives up an upload whose blob is gone. The bucket forgets the parts that it has.
func (u *uploads) drop(up *upload) {
	if up.ID != "" {
		if err := u.t.ask(u.t.ctx, func() error { return u.t.bucket.Abort(u.t.ctx, up.name(), up.ID) }); err != nil {
			u.requeue(up, time.Now().Add(u.t.pace.again))
			return
		}
	}
	u.forget(up)
}

// name is the name of the object.
func (up *upload) name() string {
	if up.Kind == fetch.Manifests {
		return manifestName(up.Digest)
	}
	return blobName(up.Digest)
}

// send brings the object and its link into the bucket, unless they are there.
// Errors: errNotHere; errDropping; errUnasked; that the bucket is unwell; those of
// the disk.
func (u *uploads) send(ctx context.Context, up *upload) error {
	b, err := u.t.store.Open(up.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return errNotHere
	}
	if err != nil {
		return err
	}
	defer b.Close()
	o := bucket.Object{Size: b.Size, MediaType: up.MediaType, Private: b.Private}
	if u.t.dropping.Has(up.name()) {
		return errDropping
	}
	var there bucket.Object
	err = u.t.ask(ctx, func() (err error) { there, err = u.t.bucket.Stat(ctx, up.name()); return err })
	switch {
	case u.t.wrong.Has(up.name()): // it is replaced
	case err == nil && there.Size == o.Size && (!there.Private || o.Private):
		return u.t.writeLink(ctx, up.Repository, up.Digest)
	case err != nil && !errors.Is(err, bucket.ErrAbsent):
		return err
	}
	err = u.t.ask(ctx, func() error {
		if o.Size > u.t.bucket.Single() {
			return u.t.bucket.Upload(ctx, up.name(), o, b.File, up.ID, func(id string) error {
				up.ID = id
				u.save(up)
				return nil
			})
		}
		sum := ""
		if up.Digest.Algorithm() == digest.SHA256 {
			sum = up.Digest.Encoded()
		}
		return u.t.bucket.Put(ctx, up.name(), o, b.File, sum)
	})
	if err != nil {
		return err
	}
	u.t.wrong.Forget(up.name())
	return u.t.writeLink(ctx, up.Repository, up.Digest)
}

// uploadQueue is a heap of uploads, the next one first.
type uploadQueue []*upload

func (q uploadQueue) Len() int           { return len(q) }
func (q uploadQueue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q uploadQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *uploadQueue) Push(x any)        { *q = append(*q, x.(*upload)) }
func (q *uploadQueue) Pop() any {
	old := *q
	up := old[len(old)-1]
	*q = old[:len(old)-1]
	return up
}
