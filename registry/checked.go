package registry

import (
	"fmt"
	"hash"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/storage"
)

// checked hashes what passes by, and holds the last byte back until the digest is right;
// of a small blob, everything.
type checked struct {
	tap    *tap
	hash   hash.Hash // of the bytes before tap.at
	digest digest.Digest

	last [1]byte // the newest byte, which may be the last
	held int     // 1 when there is one
}

// send is a sender. What comes before off is only hashed; it may not lie before tap.at.
func (c *checked) send(w http.ResponseWriter, off, n int64) (int64, error) {
	at := c.tap.at
	if n < 0 && c.tap.size >= 0 { // nobody knew it when the client was promised all
		n = c.tap.size - off
	}
	if size := c.tap.size; size >= 0 && size <= storage.VerifyFirst {
		b, err := io.ReadAll(c)
		if err != nil {
			return 0, err
		}
		m, err := w.Write(b[off-at:][:n])
		return int64(m), err
	}
	// Reading over what the client has already; it waits meanwhile.
	if _, err := io.CopyN(io.Discard, c, off-at); err != nil {
		return 0, err
	}
	return content.Copy(w, off, n, func(p []byte, _ int64) (int, error) { return c.Read(p) })
}

// Read is one byte behind the tap.
func (c *checked) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		m, err := c.tap.Read(p)
		if m > 0 {
			c.hash.Write(p[:m])
			newest := p[m-1]
			copy(p[c.held:], p[:m-1])
			n := copy(p, c.last[:c.held]) + m - 1
			c.last[0], c.held = newest, 1
			if n > 0 {
				return n, nil
			}
			continue
		}
		if err != io.EOF {
			return 0, err
		}
		if err := c.verify(); err != nil {
			return 0, err
		}
		n := copy(p, c.last[:c.held])
		c.held = 0
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
}

func (c *checked) verify() error {
	if got := digest.NewDigest(c.digest.Algorithm(), c.hash); got != c.digest {
		return fmt.Errorf("%w: got %s for %s", storage.ErrDigest, got, c.digest)
	}
	return nil
}
