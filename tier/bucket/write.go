package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/minio/minio-go/v7"
)

// maxParts is less than the 10,000 that S3 knows.
const maxParts = 9000

// Single returns how many bytes an object may have that is sent by one request. Larger ones are sent in
// parts, so that an upload that breaks goes on where it was.
func (b *Bucket) Single() int64 { return b.part }

// partSize returns how long the parts of an object are.
func (b *Bucket) partSize(size int64) int64 {
	return (size/maxParts/b.part + 1) * b.part
}

// Put writes an object of at most Single() bytes. sha256 is the hex digest of its bytes, which the
// server then checks; "": unknown. An object of that name is replaced at once, and no reader ever sees
// a half one.
// Errors: that the bucket is unwell, those of content, ctx's cause.
func (b *Bucket) Put(ctx context.Context, name string, o Object, content io.ReaderAt, sha256 string) error {
	sending, done := b.sender(ctx, content, 0, o.Size)
	defer done()
	opts := o.options()
	opts.DisableContentSha256 = sha256 != "" // it then hashes nothing by itself
	if _, err := b.core.PutObject(sending.w.ctx, b.name, b.full(name), sending, o.Size, "", sha256, opts); err != nil {
		return classify(sending.w.ctx, "writing", name, err)
	}
	return nil
}

// options returns what an object is written with.
func (o Object) options() minio.PutObjectOptions {
	opts := minio.PutObjectOptions{ContentType: o.MediaType, SendContentMd5: false, DisableMultipart: true}
	if o.Private {
		opts.UserMetadata = map[string]string{privateKey: "1"}
	}
	return opts
}

// Upload writes an object in parts. id is that of an earlier Upload of the same bytes that broke,
// which then goes on; "": there was none. begun is told the id of the upload before the first
// part is sent, so that it can be kept for the next time.
// Errors: that the bucket is unwell, those of content and of begun, ctx's cause.
func (b *Bucket) Upload(ctx context.Context, name string, o Object, content io.ReaderAt, id string, begun func(id string) error) error {
	parts, err := b.parts(ctx, name, id, o.Size)
	if err != nil {
		return err
	}
	if parts == nil {
		if id, err = b.begin(ctx, name, o); err != nil {
			return err
		}
		if err := begun(id); err != nil {
			b.Abort(ctx, name, id)
			return err
		}
		parts = map[int]minio.CompletePart{}
	}
	length := b.partSize(o.Size)
	all := make([]minio.CompletePart, 0, o.Size/length+1)
	for n, at := 1, int64(0); at < o.Size; n, at = n+1, at+length {
		part, ok := parts[n]
		if !ok {
			if part, err = b.sendPart(ctx, name, id, n, io.NewSectionReader(content, at, min(length, o.Size-at))); err != nil {
				return err
			}
		}
		all = append(all, part)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.waits.complete, errSlow)
	defer cancel()
	if _, err := b.core.CompleteMultipartUpload(ctx, b.name, b.full(name), id, all, minio.PutObjectOptions{}); err != nil {
		return classify(ctx, "completing", name, err)
	}
	return nil
}

// begin begins an upload in parts, and returns its id.
func (b *Bucket) begin(ctx context.Context, name string, o Object) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.waits.write, errSlow)
	defer cancel()
	id, err := b.core.NewMultipartUpload(ctx, b.name, b.full(name), o.options())
	if err != nil {
		return "", classify(ctx, "beginning to write", name, err)
	}
	return id, nil
}

// parts returns the parts that an earlier upload has sent, by number. It returns nil when that upload
// is gone, or was of another size.
func (b *Bucket) parts(ctx context.Context, name, id string, size int64) (map[int]minio.CompletePart, error) {
	if id == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.waits.write, errSlow)
	defer cancel()
	parts, length := map[int]minio.CompletePart{}, b.partSize(size)
	for after := 0; ; {
		list, err := b.core.ListObjectParts(ctx, b.name, b.full(name), id, after, 1000)
		if code := minio.ToErrorResponse(err).Code; code == "NoSuchUpload" || code == minio.NoSuchKey {
			return nil, nil
		}
		if err != nil {
			return nil, classify(ctx, "going on with", name, err)
		}
		for _, p := range list.ObjectParts {
			if p.Size == min(length, size-int64(p.PartNumber-1)*length) { // otherwise it is sent again
				parts[p.PartNumber] = minio.CompletePart{PartNumber: p.PartNumber, ETag: p.ETag}
			}
		}
		if !list.IsTruncated || list.NextPartNumberMarker <= after {
			return parts, nil
		}
		after = list.NextPartNumberMarker
	}
}

// sendPart sends the part n.
func (b *Bucket) sendPart(ctx context.Context, name, id string, n int, content *io.SectionReader) (minio.CompletePart, error) {
	sending, done := b.sender(ctx, content, 0, content.Size())
	defer done()
	p, err := b.core.PutObjectPart(sending.w.ctx, b.name, b.full(name), id, n, sending, content.Size(), minio.PutObjectPartOptions{})
	if err != nil {
		return minio.CompletePart{}, classify(sending.w.ctx, fmt.Sprintf("writing part %d of", n), name, err)
	}
	return minio.CompletePart{PartNumber: n, ETag: p.ETag}, nil
}

// Abort forgets an upload in parts, and what it has sent. One that is gone is no error.
// Errors: that the bucket is unwell, ctx's cause.
func (b *Bucket) Abort(ctx context.Context, name, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.waits.write, errSlow)
	defer cancel()
	err := b.core.AbortMultipartUpload(ctx, b.name, b.full(name), id)
	if err == nil || minio.ToErrorResponse(err).Code == "NoSuchUpload" {
		return nil
	}
	if err = classify(ctx, "forgetting", name, err); errors.Is(err, ErrAbsent) {
		return nil
	}
	return err
}

// Delete deletes an object. One that isn't there is no error.
// Errors: that the bucket is unwell, ctx's cause.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.waits.write, errSlow)
	defer cancel()
	err := b.core.RemoveObject(ctx, b.name, b.full(name), minio.RemoveObjectOptions{})
	if err == nil {
		return nil
	}
	if err = classify(ctx, "deleting", name, err); errors.Is(err, ErrAbsent) {
		return nil
	}
	return err
}

// sender returns a reader of a part of content, which ends when no byte is taken for too long. The
// requests that it is for must have its context. done must be called after them.
func (b *Bucket) sender(ctx context.Context, content io.ReaderAt, from, n int64) (s *sender, done func()) {
	sending, cancel := context.WithCancelCause(ctx)
	w := newWatch(sending, cancel, b.waits.write)
	return &sender{io.NewSectionReader(content, from, n), w}, func() { w.rests(); cancel(nil) }
}

// sender is bytes on their way to the bucket. After the last one the answer has as long as a stall.
type sender struct {
	*io.SectionReader
	w *watch
}

func (s *sender) Read(p []byte) (int, error) {
	s.w.moves()
	return s.SectionReader.Read(p)
}
