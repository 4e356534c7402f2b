package dockerhost

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// startCommand is how a hold calls this program to start its command.
const startCommand = "hold-start"

// starterFile is the file of a starter that is its end of the socket to the hold.
const starterFile = 3

// starter makes a hold's command. It is a process of this program that waits for the go-ahead and
// then becomes the command. So the guard knows the process before the command runs in it.
type starter struct {
	cmd    *exec.Cmd
	socket *os.File // the hold's end
}

// newStarter returns a starter of the program at path. Its cmd isn't started.
func newStarter(path string, argv []string) (*starter, error) {
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the hold's command: %w", err)
	}
	ours, its := os.NewFile(uintptr(ends[0]), "starter"), os.NewFile(uintptr(ends[1]), "hold")
	args := append([]string{os.Args[0], "docker", startCommand, path}, argv...)
	return &starter{&exec.Cmd{Path: "/proc/self/exe", Args: args, ExtraFiles: []*os.File{its}}, ours}, nil
}

// start starts the process, which waits.
func (s *starter) start() error {
	defer s.cmd.ExtraFiles[0].Close()
	err := s.cmd.Start()
	if err != nil {
		s.socket.Close()
	}
	return err
}

// goAhead lets the process become the command. It fails only when the process has ended.
func (s *starter) goAhead() { _, _ = s.socket.Write([]byte{1}) }

// wait returns when the process has become the command, or has ended: its end is closed then.
func (s *starter) wait() {
	_, _ = s.socket.Read(make([]byte, 1))
	s.socket.Close()
}

// BecomeCommand has to be called first in main, before anything handles signals, with the arguments of
// the program: signals have to have the effect on a starter that they have on the command. If the
// arguments are those of a starter, it waits for the hold's go-ahead, and the process becomes the
// command; if that fails, it ends. Without a go-ahead, because the hold was killed, it ends too.
func BecomeCommand(args []string) {
	if len(args) < 5 || args[1] != "docker" || args[2] != startCommand {
		return
	}
	path, argv := args[3], args[4:]
	syscall.CloseOnExec(starterFile)
	socket := os.NewFile(starterFile, "hold")
	if _, err := io.ReadFull(socket, make([]byte, 1)); err != nil {
		os.Exit(exitCannotRun)
	}
	err := syscall.Exec(path, argv, os.Environ())
	fmt.Fprintf(os.Stderr, "hubcache: %s: %v\n", path, err)
	os.Exit(exitCannotRun)
}
