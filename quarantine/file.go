package quarantine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// schema is the version of the file.
	schema = 1
	// writeEvery is how much of the history a crash can lose. What is lost waits again.
	writeEvery = time.Second
)

// document is the file.
type document struct {
	Schema int               `json:"schema"`
	Tags   map[string]*Entry `json:"tags"`
}

// file writes a Book to disk in the background.
type file struct {
	path    string
	log     *slog.Logger
	wake    chan struct{} // of one
	stop    chan struct{}
	running sync.WaitGroup
	failing bool // the last write has failed, which the log says; of the one goroutine that writes
}

// Open returns the Book that is kept in a file. It never fails: a damaged file is set aside, with .bad
// behind its name, and one of a newer version, or one that can't be read, stays as it is; then the Book
// is in memory only, and what it doesn't know waits again. Call Close.
func Open(path string, log *slog.Logger) *Book {
	b := New()
	doc, err := read(path)
	switch {
	case err == nil:
		b.tags = doc.Tags
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, errDamaged):
		err = errors.Join(err, os.Rename(path, path+".bad"))
		log.Error("the file of what waits in quarantine is damaged and was set aside: all tags with quarantine wait again", "path", path+".bad", "error", err)
	default:
		log.Error("what waits in quarantine can't be read, and isn't kept in this run: all tags with quarantine wait again", "path", path, "error", err)
		return b
	}
	b.file = &file{path: path, log: log, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	b.file.running.Go(func() { b.file.run(b.document) })
	return b
}

// Close writes what has changed. What changes later isn't kept.
func (b *Book) Close() {
	if b.file != nil {
		close(b.file.stop)
		b.file.running.Wait()
	}
}

var errDamaged = errors.New("not a file of hubcache's quarantine")

// read reads the file. Errors: fs.ErrNotExist; errDamaged; a newer version; those of reading.
func read(path string) (doc document, err error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return doc, err
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return doc, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if doc.Schema > schema {
		return doc, fmt.Errorf("it has version %d, and this hubcache knows %d: use the newer hubcache, or move the file away", doc.Schema, schema)
	}
	if doc.Schema != schema {
		return doc, fmt.Errorf("%w: version %d", errDamaged, doc.Schema)
	}
	for tag, e := range doc.Tags {
		if e == nil {
			delete(doc.Tags, tag)
		}
	}
	if doc.Tags == nil {
		doc.Tags = map[string]*Entry{}
	}
	return doc, nil
}

// document returns the file's content.
func (b *Book) document() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return json.Marshal(document{schema, b.tags})
}

// changed lets the file be written soon.
func (f *file) changed() {
	select {
	case f.wake <- struct{}{}:
	default: // it will be noticed
	}
}

// run writes the file when something has changed, until stop is closed.
func (f *file) run(content func() ([]byte, error)) {
	for {
		select {
		case <-f.wake:
			f.write(content)
		case <-f.stop:
			select {
			case <-f.wake:
				f.write(content)
			default:
			}
			return
		}
		select {
		case <-time.After(writeEvery):
		case <-f.stop:
		}
	}
}

// write writes the file, and logs the first of several failures. It is tried again.
func (f *file) write(content func() ([]byte, error)) {
	body, err := content()
	if err == nil {
		err = replace(f.path, body)
	}
	if err != nil && !f.failing {
		f.log.Error("what waits in quarantine can't be written: after a restart it waits again", "path", f.path, "error", err)
	}
	if f.failing = err != nil; f.failing {
		f.changed() // it is tried again
	}
}

// replace writes a file whole or not at all.
func replace(path string, body []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = bytes.NewReader(body).WriteTo(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
