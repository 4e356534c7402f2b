package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// Options is how an import is done.
type Options struct {
	// Private reports whether nobody has vouched for a repository being public, and a server with an
	// access token for its registry is going to serve it: that then asks the upstream before it serves
	// what comes in here under another repository. nil: there is none.
	Private func(repository string) bool

	// Public says that the operator vouches for it: the repositories are noted as public.
	Public bool

	Move     bool              // what has come in is deleted from the source
	Progress func(bytes int64) // so many more have come in; nil: nobody wants to know
}

// Result is what an import has done.
type Result struct {
	Images   int      // that came in, whole or in part
	Bytes    int64    // that came in
	Problems []string // what did not come in, and why; it isn't in the Plan
}

// Run does what a plan says. An image whose layer is damaged comes in without it.
// Errors: those of ctx and of the disk. What has come in stays, and a second run goes on from there.
func Run(ctx context.Context, p *Plan, src Source, store *storage.Store, o Options) (Result, error) {
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	r := &run{ctx: ctx, src: src, store: store, o: o, bad: map[digest.Digest]bool{}}
	for _, i := range p.Images {
		if err := r.image(i); err != nil {
			return r.Result, err
		}
	}
	return r.Result, r.clear()
}

type run struct {
	Result
	ctx   context.Context
	src   Source
	store *storage.Store
	o     Options
	bad   map[digest.Digest]bool // reported already
	moved []digest.Digest        // manifests that are deleted at the end: other images may name them
}

// image brings in one image.
func (r *run) image(i Planned) error {
	from := storage.Origin{Repository: i.Repository, Private: r.o.Private != nil && r.o.Private(i.Repository), Used: i.Used}
	for _, part := range i.parts {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		err := r.part(from, part)
		if errors.Is(err, storage.ErrDigest) || errors.Is(err, errDamaged) {
			if !r.bad[part.digest] {
				r.bad[part.digest] = true
				r.Problems = append(r.Problems, fmt.Sprintf("%s: %s is damaged, and isn't brought in", i.Reference(), part.digest))
			}
			if part.digest == i.Digest {
				return nil
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", i.Reference(), part.digest, err)
		}
	}
	r.store.UsedAt(i.Digest, i.Used)
	if err := r.refer(from, i); err != nil {
		return err
	}
	r.name(i)
	r.Images++
	return nil
}

// name writes the tag, unless the store knows it from a later time, and that the repository is
// public.
func (r *run) name(i Planned) {
	if i.Tag != "" {
		old, err := r.store.Tag(i.Repository, i.Tag)
		if err != nil || !old.Checked.After(i.Checked) {
			size, _ := r.store.Has(i.Digest)
			r.store.SetTag(i.Repository, i.Tag, storage.Tag{Digest: i.Digest, MediaType: i.MediaType, Size: size, Checked: i.Checked})
		}
	}
	if r.o.Public {
		r.store.SetVisibility(i.Repository, storage.Visibility{Public: true, At: time.Now()})
	}
}

// part brings in one blob or manifest.
func (r *run) part(from storage.Origin, p part) error {
	if p.manifest {
		return r.manifest(from, p)
	}
	err := r.blob(from, p)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err == nil && r.o.Move {
		err = removed(r.src.Remove(p.digest))
	}
	return err
}

func (r *run) manifest(from storage.Origin, p part) error {
	body, err := readManifest(r.src, p.digest)
	if err != nil {
		return err
	}
	_, had := r.store.Has(p.digest)
	if err := r.store.PutManifest(from, p.digest, p.mediaType, body); err != nil {
		return err
	}
	if !had {
		r.came(p.size)
	}
	if r.o.Move {
		r.moved = append(r.moved, p.digest)
	}
	return nil
}

func (r *run) came(bytes int64) {
	r.Bytes += bytes
	r.o.Progress(bytes)
}

// blob copies a blob. Errors: fs.ErrExist when the store has it.
func (r *run) blob(from storage.Origin, p part) error {
	if _, ok := r.store.Has(p.digest); ok {
		return fs.ErrExist
	}
	b, err := r.src.Open(p.digest)
	if err != nil {
		return err
	}
	defer b.Close()
	in, err := r.store.Begin(from, p.digest, b.Size)
	if err != nil {
		return err
	}
	if err := in.Fill(r.ctx, b, b.File); err != nil {
		in.Abort(err)
		return err
	}
	if err := in.Commit(); err != nil {
		return err
	}
	r.came(b.Size)
	return nil
}

// clear deletes the manifests that have come in, when everything else is done.
func (r *run) clear() error {
	var errs []error
	for _, d := range r.moved {
		errs = append(errs, removed(r.src.Remove(d)))
	}
	return errors.Join(errs...)
}

// removed makes it no error that something has gone already.
func removed(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
