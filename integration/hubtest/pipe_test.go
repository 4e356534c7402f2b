package hubtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestPipeCarriesAllBytes: what is written arrives, whatever the sizes of writes and reads.
func TestPipeCarriesAllBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		want := make([]byte, 100_003)
		Random(1).ReadAt(want, 0)
		near, far := Pipe()
		go func() {
			defer near.Close()
			for rest, n := want, 1; len(rest) > 0; n = 2*n + 1 {
				m, err := near.Write(rest[:min(n, len(rest))])
				if err != nil {
					t.Error(err)
					return
				}
				rest = rest[m:]
			}
		}()
		for _, size := range []int{1, 7, 4096, 10_000, 200_000} {
			p := make([]byte, size)
			n, err := io.ReadFull(far, p)
			if !bytes.Equal(p[:n], want[:n]) || err != nil && n < len(want) {
				t.Errorf("%d bytes of %d: %v", n, size, err)
			}
			want = want[n:]
		}
		if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
	})
}

// TestPipeEndsWaiting: closing either end, and a deadline, end what waits and what comes later.
func TestPipeEndsWaiting(t *testing.T) {
	t.Parallel()
	read := func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	write := func(c net.Conn) error { _, err := c.Write([]byte("ab")); return err }
	for name, c := range map[string]struct {
		end  func(near, far net.Conn)
		do   func(net.Conn) error
		want error
	}{
		"read, own end":            {func(near, _ net.Conn) { near.Close() }, read, io.ErrClosedPipe},
		"read, other end":          {func(_, far net.Conn) { far.Close() }, read, io.EOF},
		"write, own end":           {func(near, _ net.Conn) { near.Close() }, write, io.ErrClosedPipe},
		"write, other end":         {func(_, far net.Conn) { far.Close() }, write, io.ErrClosedPipe},
		"write, taken in part":     {func(_, far net.Conn) { read(far); far.Close() }, write, io.ErrClosedPipe},
		"read, deadline":           {func(near, _ net.Conn) { near.SetReadDeadline(time.Now()) }, read, os.ErrDeadlineExceeded},
		"read, deadline to come":   {func(near, _ net.Conn) { near.SetDeadline(time.Now().Add(time.Hour)) }, read, os.ErrDeadlineExceeded},
		"write, deadline":          {func(near, _ net.Conn) { near.SetWriteDeadline(time.Now()) }, write, os.ErrDeadlineExceeded},
		"write, deadline replaced": {func(near, _ net.Conn) { near.SetDeadline(time.Time{}); near.SetDeadline(time.Now().Add(time.Hour)) }, write, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := Pipe()
				near.SetDeadline(time.Now().Add(24 * time.Hour))
				ended := make(chan error, 1)
				go func() { ended <- c.do(near) }()
				synctest.Wait()
				c.end(near, far)
				if err := <-ended; !errors.Is(err, c.want) {
					t.Errorf("what waited ended with %v", err)
				}
				if err := c.do(near); !errors.Is(err, c.want) {
					t.Errorf("the next one ended with %v", err)
				}
				if errors.Is(c.want, os.ErrDeadlineExceeded) {
					near.SetDeadline(time.Time{})
					go func() { far.Write([]byte("a")) }()
					go func() { io.ReadFull(far, make([]byte, 2)) }()
					if err := c.do(near); err != nil {
						t.Errorf("without the deadline: %v", err)
					}
				}
				near.Close()
				far.Close()
			})
		})
	}
}
