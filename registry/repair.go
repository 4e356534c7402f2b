package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// maxRepairTries is from how many repositories a blob is asked for. A base layer may belong to
// hundreds.
const maxRepairTries = 5

// owner is a repository that has a bad blob.
type owner struct {
	repository string // with its registry
	confirmed  bool   // the upstream has said so; else a manifest names it
}

// repairAll fetches what was bad again: manifests first, since a blob needs one of them to be
// reached. Its error ends the work; that of a blob is in its BadBlob.
func (v *verify) repairAll(ctx context.Context) error {
	owners, err := v.owners()
	if err != nil {
		return err
	}
	for _, manifests := range []bool{true, false} {
		for i := range v.res.Bad {
			b := &v.res.Bad[i]
			if b.Manifest != manifests {
				continue
			}
			for _, o := range owners[b.Digest] {
				b.Repositories = append(b.Repositories, o.repository)
			}
			b.Err = v.repair(ctx, b)
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			b.Repaired = b.Err == nil
			told := *b
			v.report(VerifyEvent{Repair: &told})
		}
	}
	return nil
}

// owners returns the repositories that have what was bad, those first of which the upstream has said
// so. Errors: that the index can't be read.
func (v *verify) owners() (map[digest.Digest][]owner, error) {
	owners := map[digest.Digest][]owner{}
	for _, b := range v.res.Bad {
		owners[b.Digest] = nil
	}
	err := v.r.store.EachLink(func(repository string, d digest.Digest, l storage.Link) error {
		if _, bad := owners[d]; bad {
			owners[d] = append(owners[d], owner{repository, l.Confirmed})
		}
		return nil
	})
	for d, all := range owners {
		slices.SortStableFunc(all, func(a, b owner) int {
			if a.confirmed == b.confirmed {
				return cmp.Compare(a.repository, b.repository)
			} else if a.confirmed {
				return -1
			}
			return 1
		})
		owners[d] = all[:min(len(all), maxRepairTries)]
	}
	return owners, err
}

// repair fetches a bad blob again, from the first of its repositories that gives it.
func (v *verify) repair(ctx context.Context, b *BadBlob) error {
	if !b.Dropped {
		return errors.New("its file is in the way: look at its permissions")
	}
	err := errors.New("no repository has it any more, so nobody needs it")
	for _, repository := range b.Repositories {
		if err = v.fetch(ctx, repository, b); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// fetch fetches a bad blob from one repository.
func (v *verify) fetch(ctx context.Context, full string, b *BadBlob) error {
	m, repository, err := v.r.mirrorOf(name.Reference{Repository: full})
	if err != nil {
		return err
	}
	if o, ok := v.down[m]; ok && time.Now().Before(o.until) {
		return o.err
	}
	r := m.internal(ctx, repository)
	if err := r.admission.wait(ctx); err != nil {
		return warmError(err)
	}
	switch subjects := v.subjects[b.Digest]; {
	case len(subjects[full]) > 0:
		err = r.renewReferrers(ctx, subjects[full])
	case b.Manifest:
		err = r.fetchManifest(ctx, b.Digest)
	default:
		blob := r.blob(b.Digest, b.Size)
		blob.Origin = r.origin()
		err = m.pool.Warm(ctx, blob, nil)
		if fetch.NotKept(err) && !errors.Is(err, storage.ErrDisk) {
			err = fmt.Errorf("%w: %w", ErrNoRoom, err)
		}
	}
	if u, ok := errors.AsType[*upstream.Error](err); ok && u.Down() {
		v.down[m] = outage{warmError(err), time.Now().Add(outageLasts)}
		return v.down[m].err
	}
	delete(v.down, m)
	if err != nil {
		return warmError(err)
	}
	return nil
}

// outage says that an upstream can't be used.
type outage struct {
	err   error
	until time.Time // when it is asked again
}

// outageLasts is for how long a repair goes on without asking an upstream that is down. To find out takes
// seconds, and there may be a thousand blobs.
const outageLasts = time.Minute

// fetchManifest fetches a manifest that isn't cached.
func (r *repo) fetchManifest(ctx context.Context, d digest.Digest) error {
	q := &manifestRequest{repo: r, ref: string(d), digest: d, sparing: true}
	f, err := askPatiently(ctx, q.find)
	if err == nil && f.outcome == OutcomeBypass {
		return fmt.Errorf("%w: the cache can't keep the manifest %s", ErrNoRoom, d)
	}
	return err
}

// renewReferrers asks again what refers to some manifests. A list has no digest that the upstream
// knows, so it can't be fetched by it.
func (r *repo) renewReferrers(ctx context.Context, subjects []digest.Digest) error {
	for _, d := range subjects {
		l, err := r.list(ctx, "referrers/"+string(d), url.Values{})
		if err != nil {
			return err
		}
		if l.long != nil && l.long.take() {
			l.long.close()
		}
	}
	return nil
}
