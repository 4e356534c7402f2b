package tier

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/tier/bucket"
)

// version begins all names. Another layout gets another version, so that older programs don't see it.
const version = "v1/"

// Names of objects. A part of a repository's name never begins with an underscore.
func blobName(d digest.Digest) string     { return version + "blobs/" + sharded(d) }
func manifestName(d digest.Digest) string { return version + "manifests/" + sharded(d) }

func linkName(repository string, d digest.Digest) string {
	return version + "repos/" + repository + "/_links/" + string(d.Algorithm()) + "/" + d.Encoded()
}

func tagName(repository, tag string) string {
	return version + "repos/" + repository + "/_tags/" + tag
}

func sharded(d digest.Digest) string {
	return string(d.Algorithm()) + "/" + d.Encoded()[:2] + "/" + d.Encoded()
}

// link says that the upstream has the manifest or blob in this repository.
type link struct {
	Schema int       `json:"schema"`
	Since  time.Time `json:"since"`
}

// tag says what the upstream said of a tag.
type tag struct {
	Schema    int           `json:"schema"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type"`
	Size      int64         `json:"size"`
	Checked   time.Time     `json:"checked"` // when it said so
}

// schema is the version of the records. A program reads no newer one.
const schema = 1

// maxRecord is more than a record has.
const maxRecord = 16 << 10

// read reads a record.
// Errors: bucket.ErrAbsent, errUnasked, that the bucket is unwell or has something else.
func (t *Tier) read(ctx context.Context, name string, record any) error {
	body, err := t.readAll(ctx, name, maxRecord)
	if err != nil {
		return err
	}
	var v struct {
		Schema int `json:"schema"`
	}
	if err = errors.Join(json.Unmarshal(body.content, &v), json.Unmarshal(body.content, record)); err != nil || v.Schema != schema {
		return fmt.Errorf("the record %s isn't of version %d: %w", name, schema, cmp.Or(err, errVersion))
	}
	return nil
}

var errVersion = errors.New("it has another one")

// whole is an object with its bytes.
type whole struct {
	bucket.Object
	content []byte
}

// readAll reads an object of at most most bytes.
// Errors: bucket.ErrAbsent, errUnasked, that the bucket is unwell, that the object is larger.
func (t *Tier) readAll(ctx context.Context, name string, most int64) (w whole, err error) {
	err = t.ask(ctx, func() error {
		body, err := t.bucket.Open(ctx, name, 0, -1)
		if err != nil {
			return err
		}
		defer body.Close()
		if w.Object = body.Object; body.Size > most {
			return nil
		}
		w.content, err = io.ReadAll(body)
		return err
	})
	if err == nil && w.Size > most {
		err = fmt.Errorf("bucket: %s has %d bytes, more than the %d that are possible", name, w.Size, most)
	}
	return w, err
}

// write writes a record.
func (t *Tier) write(ctx context.Context, name string, record any) error {
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return t.ask(ctx, func() error {
		return t.bucket.Put(ctx, name, bucket.Object{Size: int64(len(b)), MediaType: "application/json"}, bytes.NewReader(b), digest.FromBytes(b).Encoded())
	})
}

// linked reports whether the bucket says that the upstream has it in this repository.
// Errors: errUnasked, that the bucket is unwell.
func (t *Tier) linked(ctx context.Context, repository string, d digest.Digest) (bool, error) {
	var l link
	err := t.read(ctx, linkName(repository, d), &l)
	if errors.Is(err, bucket.ErrAbsent) {
		return false, nil
	}
	return err == nil, err
}

// writeLink says in the bucket that the upstream has it in this repository.
func (t *Tier) writeLink(ctx context.Context, repository string, d digest.Digest) error {
	if known, err := t.linked(ctx, repository, d); known || errors.Is(err, errUnasked) {
		return err
	}
	return t.write(ctx, linkName(repository, d), link{Schema: schema, Since: time.Now().UTC()})
}

// tagAge is how old a record of a tag that hasn't moved may become before it is written again.
const tagAge = 10 * time.Minute

// noteTag writes what the upstream has just said of a tag, unless a newer record is there.
func (t *Tier) noteTag(repository, name string, r tag) {
	key := repository + ":" + name + "@" + string(r.Digest)
	if r.Digest == "" || t.noted.Has(key) {
		return
	}
	t.soon(func(ctx context.Context) {
		object := tagName(repository, name)
		var old tag
		if err := t.read(ctx, object, &old); errors.Is(err, errUnasked) || err == nil && (old.Checked.After(r.Checked) || old.Digest == r.Digest && r.Checked.Sub(old.Checked) < tagAge) {
			return
		}
		if t.write(ctx, object, r) == nil {
			t.noted.Add(key, tagAge, nil)
		}
	})
}
