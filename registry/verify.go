package registry

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// ErrVerifying is the error of Verify while another one goes on.
var ErrVerifying = errors.New("the cache is being verified already")

// ErrDiskFails is the error of Verify when it gives up, because the disk can't read anything any
// more. To drop all that is cached would help nobody.
var ErrDiskFails = errors.New("the disk can't read one file after the other; nothing more was verified")

const (
	// verifyRate is how many bytes are hashed in a second: half of what a slow disk reads, so that
	// a pull that comes meanwhile has at least the other half. 100 GiB take 27 minutes.
	verifyRate = 64 << 20

	// verifyBusyRate is verifyRate while a client gets a blob.
	verifyBusyRate = 8 << 20

	// verifySeek, in bytes, is what each file costs beside its length. A disk that has to seek
	// could have read so much meanwhile.
	verifySeek = 64 << 10

	// verifyEvery is the time between two reports of how far it has come.
	verifyEvery = 500 * time.Millisecond

	// verifyGivesUp is after how many files in a row that the disk can't read it gives up.
	verifyGivesUp = 5
)

// VerifyOptions say what Verify does.
type VerifyOptions struct {
	Repair bool              // fetch again what was bad
	Report func(VerifyEvent) // is told what happens, by one goroutine, which waits for it; nil: nobody is
}

// VerifyEvent is news of Verify. One field is set.
type VerifyEvent struct {
	Progress *VerifyProgress
	Bad      *BadBlob // it was just found
	Repair   *BadBlob // it was fetched again, or not: see Repaired and Err
}

// VerifyProgress is how far it has come. What has been evicted meanwhile counts as done.
type VerifyProgress struct {
	Blobs, AllBlobs int   // manifests too
	Bytes, AllBytes int64 // of them
}

// BadBlob is a blob, or a manifest, that is not as it came.
type BadBlob struct {
	Digest       digest.Digest
	Size         int64 // bytes that it should have
	Manifest     bool
	Why          error
	Dropped      bool     // false: its file can't be opened, so nobody knows its bytes
	Repositories []string // some that have it, with their registry; with Repair alone
	Repaired     bool     // it has been fetched again
	Err          error    // why it hasn't been; nil without Repair, too
}

// Verified is what Verify has found.
type Verified struct {
	VerifyProgress
	Bad []BadBlob
}

// Verify hashes all that is cached, at a bounded rate, and drops what is bad. With Repair that is
// fetched again then, under the same rules as a pull: allow and deny, visibility, budget and the
// quota reserve. Unfinished downloads are left out: they are hashed before they are served.
//
// Errors: ErrVerifying; ErrDiskFails; ctx's cause; that the server is stopping. What was found until
// then is returned too.
func (r *Registry) Verify(ctx context.Context, o VerifyOptions) (Verified, error) {
	if !r.verifying.CompareAndSwap(false, true) {
		return Verified{}, ErrVerifying
	}
	defer r.verifying.Store(false)
	leave, ok := r.tasks.enter()
	if !ok {
		return Verified{}, errStopping
	}
	defer leave()
	ctx, cancel := r.tasks.untilStop(withClient(ctx, thisMachine))
	defer cancel()
	v := &verify{r: r, o: o, subjects: map[digest.Digest]map[string][]digest.Digest{}, down: map[*mirror]outage{}}
	err := v.hashAll(ctx)
	if err == nil && o.Repair && len(v.res.Bad) > 0 {
		err = v.repairAll(ctx)
	}
	return v.res, err
}

// verify is one call of Verify. Not safe for concurrent use.
type verify struct {
	r        *Registry
	o        VerifyOptions
	res      Verified
	subjects map[digest.Digest]map[string][]digest.Digest // of bad lists of referrers
	pace     pace
	told     time.Time // when progress was last reported
	unread   int       // files in a row that the disk couldn't read
	down     map[*mirror]outage
}

func (v *verify) report(e VerifyEvent) {
	if v.o.Report != nil {
		v.o.Report(e)
	}
}

// progress reports how far it has come, not too often.
func (v *verify) progress(atOnce bool) {
	if now := time.Now(); atOnce || now.Sub(v.told) >= verifyEvery {
		v.told = now
		p := v.res.VerifyProgress
		v.report(VerifyEvent{Progress: &p})
	}
}

// hashAll hashes all that is cached.
func (v *verify) hashAll(ctx context.Context) error {
	all, bytes := v.r.store.Blobs()
	v.res.AllBlobs, v.res.AllBytes = len(all), bytes
	v.progress(true)
	for _, d := range all {
		if err := v.hash(ctx, d); err != nil {
			return err
		}
		v.res.Blobs++
		v.progress(false)
	}
	v.progress(true)
	return nil
}

// hash hashes one blob. Its error ends the work.
func (v *verify) hash(ctx context.Context, d digest.Digest) error {
	e, ok := v.r.store.Entry(d)
	if !ok {
		return nil // evicted
	}
	subjects := map[string][]digest.Digest{}
	if e.Manifest { // before it is dropped
		subjects, _ = v.r.store.Subjects(d) // without them it is taken for another manifest, and not found
	}
	before := v.res.Bytes
	err := v.wait(ctx, verifySeek)
	if err == nil {
		err = v.r.store.Verify(ctx, d, func(n int) error {
			v.res.Bytes += int64(n)
			v.progress(false)
			return v.wait(ctx, n)
		})
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	v.res.Bytes = before + e.Size
	if !errors.Is(err, storage.ErrDisk) {
		v.unread = 0
	}
	switch {
	case err == nil:
		v.r.rechecks.trust(d)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil // it has left by itself
	}
	dropped := errors.Is(err, storage.ErrDigest) || errors.Is(err, storage.ErrDisk) || errors.Is(err, storage.ErrLost)
	v.res.Bad = append(v.res.Bad, BadBlob{Digest: d, Size: e.Size, Manifest: e.Manifest, Why: err, Dropped: dropped})
	if len(subjects) > 0 {
		v.subjects[d] = subjects
	}
	bad := v.res.Bad[len(v.res.Bad)-1]
	v.report(VerifyEvent{Bad: &bad})
	if errors.Is(err, storage.ErrDisk) {
		if v.unread++; v.unread == verifyGivesUp {
			return ErrDiskFails
		}
	}
	return nil
}

// wait waits as long as n bytes may take. Errors: ctx's cause.
func (v *verify) wait(ctx context.Context, n int) error {
	rate := verifyRate
	if v.r.sending.Load() > 0 {
		rate = verifyBusyRate
	}
	return v.pace.wait(ctx, n, rate)
}

// pace spreads work over time. Time that nothing was done in isn't made up for. The zero value is
// ready.
type pace struct {
	next time.Time // when the next piece may be worked on
}

// wait waits as long as n bytes take at a rate in bytes per second. Errors: ctx's cause.
func (p *pace) wait(ctx context.Context, n, rate int) error {
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(rate))
	select {
	case <-time.After(p.next.Sub(now)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
