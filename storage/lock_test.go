package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// blockIndex makes all reads of the index wait, as they do when a write grows the file while a
// long read goes on. The function that it returns lets them go on.
func blockIndex(t *testing.T, s *Store, db *bbolt.DB) (unblock func()) {
	t.Helper()
	long, err := db.Begin(false)
	if err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	s.catalogue.index.Set(bucketTags, pair("docker.io/x/y", "large"), Tag{Digest: digest.FromString("x"), MediaType: string(make([]byte, 8<<20))}.encode())
	waiting.Go(s.house.flush)
	for blocked := false; !blocked; {
		read := make(chan error, 1)
		waiting.Go(func() { read <- db.View(func(*bbolt.Tx) error { return nil }) })
		select {
		case <-read:
		case <-time.After(200 * time.Millisecond):
			blocked = true
		}
	}
	return func() {
		long.Rollback()
		waiting.Wait()
	}
}

// TestReadsOfTheIndexHoldNoLock: while all reads of the index wait, and some of every kind do,
// whatever needs no read of the index goes on.
func TestReadsOfTheIndexHoldNoLock(t *testing.T) {
	t.Parallel()
	var db *bbolt.DB
	s, err := Open(Options{Dir: t.TempDir(), Budget: 100 << 20, Log: slog.New(slog.DiscardHandler), IndexOpened: func(opened *bbolt.DB) { db = opened }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	settleDown(t, s)
	from := Origin{Repository: repo}

	blob := noise(1, 2<<20)
	d := put(t, s, blob)
	other := put(t, s, noise(2, 1000))
	partial := noise(3, 2<<20)
	begun(t, s, from, partial).Abort(io.ErrUnexpectedEOF)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":%d}]}`, d, len(blob))
	md := digest.FromBytes(manifest)
	if err := s.PutManifest(from, md, "application/x", manifest); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "1", Tag{Digest: md, Checked: time.Now()})
	coming := noise(4, 3<<20)
	in := begun(t, s, from, coming)
	s.house.flush()
	s.house.repos.writeDue()

	var reads sync.WaitGroup
	defer reads.Wait()
	defer blockIndex(t, s, db)()
	for _, read := range []func(){
		func() { s.Link(repo, d) },
		func() { s.Confirm(repo, d, int64(len(blob))) },
		func() { s.Tag(repo, "1") },
		func() { s.SetTag(repo, "2", Tag{Digest: md}) },
		func() { s.DeleteTag(repo, "3") },
		func() { s.Visibility(repo) },
		func() { s.Repositories("docker.io") },
		func() { s.Manifest(md) },
		func() { s.room.touch(md, time.Now().Add(time.Hour).UnixNano(), 0) },
		func() { s.PutManifest(from, digest.FromString("{}"), "x", []byte("{}")) },
		func() { s.markManifest(other, &Manifest{}) },
		func() { s.house.sweep(time.Now()) },
		func() { s.house.repos.writeFile(repo) },
		func() { s.house.flush() },
	} {
		reads.Go(read)
	}
	time.Sleep(100 * time.Millisecond) // all of them wait by now

	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"Stats", func() error {
			if s.Stats().BudgetBytes != 100<<20 {
				return errors.New("another budget")
			}
			return nil
		}},
		{"Budget", func() error { s.Budget(); return nil }},
		{"Has", func() error {
			if _, ok := s.Has(d); !ok {
				return errors.New("not there")
			}
			return nil
		}},
		{"Open", func() error {
			b, err := s.Open(d)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(b.File)
			if err == nil && !bytes.Equal(got, blob) {
				err = errors.New("other bytes")
			}
			return errors.Join(err, b.Close())
		}},
		{"CountPull", func() error { s.CountPull(repo, "7"); return nil }},
		{"Touch of a blob", func() error { s.Touch(d); return nil }},
		{"Verify", func() error { return s.Verify(context.Background(), d, nil) }},
		{"Partial", func() error {
			if size, _ := s.Partial(digest.FromBytes(partial)); size == 0 {
				return errors.New("not there")
			}
			return nil
		}},
		{"resuming an Ingest", func() error {
			in, err := s.Begin(from, digest.FromBytes(partial), int64(len(partial)))
			if err == nil {
				in.Abort(io.ErrUnexpectedEOF)
			}
			return err
		}},
		{"reading an Ingest while it grows", func() error {
			r, ok := in.Reader()
			if !ok {
				return errors.New("no reader")
			}
			defer r.Close()
			p := make([]byte, 1000)
			_, err := r.ReadAt(context.Background(), p, 0)
			if err == nil && !bytes.Equal(p, coming[:1000]) {
				err = errors.New("other bytes")
			}
			return err
		}},
		{"committing an Ingest", func() error {
			if _, err := in.WriteAt(coming[len(coming)-100:], int64(len(coming)-100)); err != nil {
				return err
			}
			return in.Commit()
		}},
		{"SetVisibility", func() error { s.SetVisibility(repo, Visibility{Public: true}); return nil }},
		{"SetLimits", func() error { s.SetLimits(50<<20, 0); return nil }},
		{"Remove", func() error { s.Remove(d); return nil }},
		{"making room by eviction", func() error { return (&reservation{room: &s.room}).grow(46 << 20) }},
	} {
		done := make(chan error, 1)
		go func() { done <- step.do() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", step.name, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s waits for the index", step.name)
		}
	}
}

// TestWritingRepositoryFilesWhileTheIndexGrows: a read transaction inside another one would wait for a
// write that waits for the outer one. No such read is made.
func TestWritingRepositoryFilesWhileTheIndexGrows(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<30)
	for n := range 300 {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, n)
		if err := s.PutManifest(Origin{Repository: repo}, digest.FromBytes(body), "x", body); err != nil {
			t.Fatal(err)
		}
	}
	s.house.flush()
	stop := make(chan struct{})
	go func() { // what housekeeping does every second for a changed repository
		for {
			select {
			case <-stop:
				return
			default:
				s.house.repos.writeFile(repo)
			}
		}
	}()
	done := make(chan struct{})
	go func() { // what commits do: the index grows and bbolt maps it anew
		defer close(done)
		for n := range 60 {
			for i := range 20 {
				v := make([]byte, 8000)
				rand.Read(v)
				s.catalogue.index.Set(bucketTags, pair("docker.io/x/y", fmt.Sprint(n, "-", i)), v)
			}
			s.house.flush()
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		s.catalogue.index = nil
		pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
		t.Fatal("the index is deadlocked")
	}
	close(stop)
	time.Sleep(50 * time.Millisecond)
}
