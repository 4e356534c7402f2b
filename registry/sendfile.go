package registry

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
)

// turn is how long a stretch is sent in one go. A goroutine that is always in a system call
// can't be preempted; after 10 ms Go's monitor begins to look every 20 µs and to take the
// processor away in each of them, which costs more than letting others run in time.
const turn = 5 * time.Millisecond

// stretch is bytes of a file on their way to a client. net/http hands its connection to a
// source that it can't send otherwise (response.ReadFrom, TCPConn.ReadFrom, io.Copy, WriteTo),
// and counts what went out; so the bytes go from the page cache to the socket, and keep-alive
// works as ever. net/http's own sendfile leaves TCP_NODELAY on, with which each 64 KiB
// of the kernel's pipe become a full segment and a tiny one: a third more CPU time a byte
// than under TCP_CORK.
//
// Where the connection is no socket (TLS, a pipe), or the file system can't, the bytes are
// copied.
type stretch struct {
	f        *os.File
	at, n    int64 // what is still to be sent
	control  *http.ResponseController
	sendfile func(to, from int, at *int64, n int) (int, error)
}

// sendStretch sends n bytes of f from off on. It neither uses nor moves f's offset.
// io.ErrUnexpectedEOF, perhaps wrapped: the file ends before.
//
// fresh: the bytes have just been written, so that hardly a disk is waited for.
func sendStretch(w http.ResponseWriter, f *os.File, off, n int64, fresh bool) (int64, error) {
	s := &stretch{f: f, at: off, n: n, control: http.NewResponseController(w), sendfile: unix.Sendfile}
	if fresh {
		s.sendfile = sendfileNow
	}
	defer s.control.SetWriteDeadline(time.Time{})
	rf, ok := w.(io.ReaderFrom)
	if !ok {
		return s.copy(w)
	}
	// Else net/http would copy the first 512 bytes, and the rest would begin off a page.
	s.control.Flush()
	return rf.ReadFrom(s)
}

// Read copies.
func (s *stretch) Read(p []byte) (int, error) {
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
func (s *stretch) WriteTo(w io.Writer) (sent int64, err error) {
	conn, ok := w.(syscall.Conn)
	if !ok {
		return s.copy(w)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	cork(raw, 1)
	defer cork(raw, 0) // and what is left goes out
	for since := time.Now(); s.n > 0; {
		now := time.Now()
		if now.Sub(since) > turn {
			runtime.Gosched()
			since = now
		}
		s.control.SetWriteDeadline(now.Add(pieceWithin))
		m, err := s.piece(raw)
		sent += m
		if cannot(err) && sent == 0 {
			return s.copy(w)
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// piece sends as much as the deadline is meant for, waiting for the client.
func (s *stretch) piece(raw syscall.RawConn) (sent int64, err error) {
	for due := min(s.n, piece); sent < due; {
		m := 0
		werr := raw.Write(func(fd uintptr) bool {
			began := time.Now()
			m, err = s.sendfile(int(fd), int(s.f.Fd()), &s.at, int(due-sent))
			if time.Since(began) > turn { // it waited for a disk
				s.sendfile = unix.Sendfile
			}
			return err != unix.EAGAIN
		})
		switch {
		case werr != nil: // the deadline, or a connection that was closed
			return sent, werr
		case err == unix.EINTR:
			continue
		case err != nil:
			return sent, os.NewSyscallError("sendfile", err)
		case m == 0:
			return sent, io.ErrUnexpectedEOF
		}
		sent, s.n = sent+int64(m), s.n-int64(m)
	}
	return sent, nil
}

// sendfileNow is unix.Sendfile of at most nowMost bytes, which the kernel has in memory. Go's
// scheduler isn't told of the call: with every CPU busy it would use each such half
// millisecond to move the other goroutines to another thread, at a tenth of the CPU time of
// a blob that is coming in.
func sendfileNow(to, from int, at *int64, n int) (int, error) {
	m, _, errno := unix.RawSyscall6(unix.SYS_SENDFILE, uintptr(to), uintptr(from), uintptr(unsafe.Pointer(at)), uintptr(min(n, nowMost)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(m), nil
}

// nowMost is what a call sends while goroutines can't be stopped, not even for the garbage
// collector: a third of a millisecond.
const nowMost = 1 << 20

// cannot reports whether err says that sendfile isn't possible here at all.
func cannot(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM)
}

// copy sends by way of a buffer.
func (s *stretch) copy(w io.Writer) (sent int64, err error) {
	buf := copyBuffers.Get().(*[copyPiece]byte)
	defer copyBuffers.Put(buf)
	for due := int64(0); s.n > 0; {
		if sent >= due {
			s.control.SetWriteDeadline(time.Now().Add(pieceWithin))
			due = sent + piece
		}
		m, rerr := s.Read(buf[:])
		k, err := w.Write(buf[:m])
		sent += int64(k)
		if err = errors.Join(err, rerr); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// cork holds segments that aren't full back (1), or lets them go (0). What can't be corked,
// a unix socket, is sent as it is.
func cork(raw syscall.RawConn, v int) {
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, v) })
}
