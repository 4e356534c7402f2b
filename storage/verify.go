package storage

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// Verify hashes blob d. One that has other bytes, or can't be read to its end, is dropped,
// counted and logged; its readers go on.
//
// Errors: fs.ErrNotExist; ErrDigest; ErrDisk; ctx's.
func (s *Store) Verify(ctx context.Context, d digest.Digest) error {
	b, err := s.openUnread(d)
	if err != nil {
		return err
	}
	defer b.Close()
	h := d.Algorithm().Hash()
	buf := hashBuffers.Get().(*[Piece]byte)
	defer hashBuffers.Put(buf)
	_, err = io.CopyBuffer(h, onlyReader{untilDone{ctx, b.File}}, buf[:])
	switch got := digest.NewDigest(d.Algorithm(), h); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrDisk, err)
	case got != d:
		err = fmt.Errorf("%w: its file has %s", ErrDigest, got)
	default:
		return nil
	}
	s.rotten(d, err)
	return err
}

// rotten drops a blob whose bytes have changed on disk.
func (s *Store) rotten(d digest.Digest, why error) {
	s.corrupt.Add(1)
	s.log.Error("a cached blob has rotted and will be fetched again", "digest", d, "error", why)
	s.Remove(d)
}

// onlyReader hides what would make io.CopyBuffer pass the buffer by.
type onlyReader struct{ io.Reader }

// untilDone ends a long reading with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, fs.ErrClosed
	}
	return u.r.Read(p)
}
