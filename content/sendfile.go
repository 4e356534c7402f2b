package content

import (
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/storage"
)

// maxTurn is how long sendfile runs before other goroutines get a turn. A goroutine that is
// always in a system call can't be preempted: after 10 ms Go's monitor begins to look every
// 20 µs and to take the processor away in each call, which costs more than yielding in time.
const maxTurn = 5 * time.Millisecond

// fileSender sends a part of a file. net/http hands its connection to a source that it can't
// send otherwise (response.ReadFrom, TCPConn.ReadFrom, io.Copy, WriteTo), and counts the
// bytes; so they go from the page cache to the socket, and keep-alive works as usual.
// net/http's own sendfile leaves TCP_NODELAY on: then each 64 KiB of the kernel's pipe become
// a full segment and a tiny one, which costs a third more CPU time than under TCP_CORK.
//
// Where the connection is no socket (TLS, a pipe), or the file system can't, it copies.
type fileSender struct {
	f        *os.File
	at, n    int64 // what is still to be sent
	pace     pace
	w        http.ResponseWriter
	to       *storage.Recipient
	sendfile func(to, from int, at *int64, n int) (int, error)
}

// SendFile sends n bytes of f, beginning at off, to a client that keeps the room of f (nil: it
// keeps none). It neither uses nor moves f's offset.
// Errors: io.ErrUnexpectedEOF, perhaps wrapped, when the file ends before; those of reading
// the file and of the connection; storage.ErrSlow.
func SendFile(w http.ResponseWriter, to *storage.Recipient, f *os.File, off, n int64) (int64, error) {
	to.Begin(w)
	sent, err := sendFile(w, to, f, off, n, false)
	return sent, to.End(err)
}

// SendShort is SendFile for what isn't a blob, at the pace of Write: a large manifest.
func SendShort(w http.ResponseWriter, to *storage.Recipient, f *os.File, off, n int64) (int64, error) {
	to.Begin(w)
	sent, err := (&fileSender{f: f, at: off, n: n, pace: short, w: w, to: to, sendfile: unix.Sendfile}).send()
	return sent, to.End(err)
}

// sendFile is SendFile between Begin and End. fresh says that the bytes have just been written,
// so that reading them hardly ever waits for a disk.
func sendFile(w http.ResponseWriter, to *storage.Recipient, f *os.File, off, n int64, fresh bool) (int64, error) {
	s := &fileSender{f: f, at: off, n: n, pace: long, w: w, to: to, sendfile: unix.Sendfile}
	if fresh {
		s.sendfile = sendfileAtOnce
	}
	return s.send()
}

func (s *fileSender) send() (int64, error) {
	rf, ok := s.w.(io.ReaderFrom)
	if !ok {
		return s.copy(s.w)
	}
	if err := allow(s.w, s.to, s.pace.within); err != nil {
		return 0, err
	}
	// Without it net/http would copy the first 512 bytes, and the rest would begin off a page.
	flush(http.NewResponseController(s.w), s.to)
	return rf.ReadFrom(s)
}

// Read copies.
func (s *fileSender) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	m, err := s.f.ReadAt(p[:min(int64(len(p)), s.n)], s.at)
	s.at, s.n = s.at+int64(m), s.n-int64(m)
	if err == io.EOF && s.n > 0 {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// WriteTo sends by sendfile if w is a socket.
func (s *fileSender) WriteTo(w io.Writer) (sent int64, err error) {
	conn, ok := w.(syscall.Conn)
	if !ok {
		return s.copy(w)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	cork(raw, 1)
	defer cork(raw, 0) // this sends the last segment
	for since := time.Now(); s.n > 0; {
		now := time.Now()
		if now.Sub(since) > maxTurn {
			runtime.Gosched()
			since = now
		}
		if err := allow(s.w, s.to, s.pace.within); err != nil {
			return sent, err
		}
		m, err := s.step(raw)
		sent += m
		if unsupported(err) && sent == 0 {
			return s.copy(w)
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// step sends as many bytes as one write deadline is for, and waits for the client.
func (s *fileSender) step(raw syscall.RawConn) (sent int64, err error) {
	for due := min(s.n, s.pace.every); sent < due; {
		m := 0
		werr := raw.Write(func(fd uintptr) bool {
			s.to.Took(0) // it waits no more
			began := time.Now()
			m, err = s.sendfile(int(fd), int(s.f.Fd()), &s.at, int(due-sent))
			if time.Since(began) > maxTurn { // it waited for a disk
				s.sendfile = unix.Sendfile
			}
			if err == unix.EAGAIN {
				s.to.Wait()
				return false
			}
			return true
		})
		switch {
		case werr != nil: // the deadline, or the connection was closed
			return sent, werr
		case err == unix.EINTR:
			continue
		case err != nil:
			return sent, os.NewSyscallError("sendfile", err)
		case m == 0:
			return sent, io.ErrUnexpectedEOF
		}
		sent, s.n = sent+int64(m), s.n-int64(m)
		s.to.Took(int64(m))
	}
	return sent, nil
}

// sendfileAtOnce is unix.Sendfile of at most atOnceMost bytes, which the kernel has in memory.
// It doesn't tell Go's scheduler of the call. With every CPU busy, the scheduler would use
// each such half millisecond to move the other goroutines to another thread, at a tenth of
// the CPU time that a blob's download takes.
func sendfileAtOnce(to, from int, at *int64, n int) (int, error) {
	m, _, errno := unix.RawSyscall6(unix.SYS_SENDFILE, uintptr(to), uintptr(from), uintptr(unsafe.Pointer(at)), uintptr(min(n, atOnceMost)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(m), nil
}

// atOnceMost is what one call sends while goroutines can't be stopped, not even for the
// garbage collector: it takes a third of a millisecond.
const atOnceMost = 1 << 20

// unsupported reports whether err says that sendfile isn't possible here at all.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM)
}

// copy sends through a buffer.
func (s *fileSender) copy(w io.Writer) (sent int64, err error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for due := int64(0); s.n > 0; {
		if sent >= due {
			if err := allow(s.w, s.to, s.pace.within); err != nil {
				return sent, err
			}
			due = sent + s.pace.every
		}
		m, rerr := s.Read(buf[:])
		s.to.Wait()
		k, err := w.Write(buf[:m])
		s.to.Took(int64(k))
		sent += int64(k)
		if err = errors.Join(err, rerr); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// cork makes the kernel hold back segments that aren't full (1), or send them (0). A unix
// socket can't be corked and is sent as it is.
func cork(raw syscall.RawConn, v int) {
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, v) })
}
