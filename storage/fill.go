package storage

import (
	"context"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Fill writes all that is missing of a blob of known size, which are the bytes of src from its
// beginning. If file isn't nil, it is a file with just these bytes; then no byte is copied on a file
// system where files can share them (reflinks: btrfs, XFS). Whatever comes is hashed as usual.
//
// Errors: those of src, of ctx and of WriteAt.
func (in *Ingest) Fill(ctx context.Context, src io.ReaderAt, file *os.File) error {
	if file != nil && in.share(file) {
		return nil
	}
	buf := make([]byte, Piece)
	for _, gap := range in.Missing() {
		for off := gap.From; off < gap.To; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n, err := src.ReadAt(buf[:min(Piece, gap.To-off)], off)
			if n == 0 && err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			if _, err := in.WriteAt(buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return nil
}

// share lets the file of the ingest have the bytes of file, if the file system can do that and
// nothing has arrived yet.
func (in *Ingest) share(file *os.File) bool {
	in.mu.Lock()
	size, fresh := in.size, len(in.claimed) == 0
	in.mu.Unlock()
	if size <= 0 || !fresh {
		return false
	}
	if fi, err := file.Stat(); err != nil || fi.Size() != size {
		return false
	}
	if unix.IoctlFileClone(int(in.f.Fd()), int(file.Fd())) != nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	all := Span{0, size}
	in.claimed, in.have = in.claimed.add(all), in.have.add(all)
	in.progress()
	return true
}
