package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
)

// drawable reports whether w is a terminal with a cursor.
func drawable(w io.Writer) bool {
	return server.IsTerminal(w) && os.Getenv("TERM") != "dumb"
}

// repeatStats repeats show until Ctrl-C, which is not an error.
func repeatStats(cmd *cobra.Command, every time.Duration, asJSON bool, show func(context.Context, io.Writer) error) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var page bytes.Buffer
		err := show(ctx, &page)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if !asJSON {
			page.WriteByte('\n')
		}
		if _, err := out.Write(page.Bytes()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sample is an answer of the server to the screen.
type sample struct {
	stats admin.Stats
	err   error
}

// watchScreen shows the figures on a screen of the terminal's own, until q or Ctrl-C. A server that
// has answered once may be away: the screen waits for it. The terminal is then as it was before.
func watchScreen(cmd *cobra.Command, c *adminclient.Client, every time.Duration) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	out := cmd.OutOrStdout().(*os.File) // drawable says so
	s := &screen{addr: c.Addr(), every: every}
	first, _, err := c.Stats(ctx)
	if err != nil {
		return err
	}
	s.add(first, time.Now())

	keys, restore := takeTerminal(cmd.InOrStdin(), out)
	defer restore()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	tick := time.NewTicker(every)
	defer tick.Stop()
	answers := make(chan sample, 1)
	asking := false
	for {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			width, height = 80, 24
		}
		if _, err := io.WriteString(out, draw(s.lines(width, height, time.Now()), colourful())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case key := <-keys:
			if key == 'q' || key == 'Q' || key == ctrlC {
				return nil
			}
		case <-resized:
		case a := <-answers:
			asking = false
			if a.err != nil {
				s.waits = a.err.Error()
			} else {
				s.add(a.stats, time.Now())
			}
		case <-tick.C:
			if !asking {
				asking = true
				go func() { // the screen goes on while the server is slow
					stats, _, err := c.Stats(ctx)
					answers <- sample{stats, err}
				}()
			}
		}
	}
}

// ctrlC is what a terminal in raw mode sends for it.
const ctrlC = 3

// takeTerminal begins a screen of its own on out and reads keys from in. If in is no terminal,
// there are no keys, and Ctrl-C ends the command's context. restore ends it.
func takeTerminal(in io.Reader, out *os.File) (keys <-chan byte, restore func()) {
	back := func() {}
	pressed := make(chan byte)
	if f, ok := in.(*os.File); ok && server.IsTerminal(f) {
		if was, err := term.MakeRaw(int(f.Fd())); err == nil {
			back = func() { _ = term.Restore(int(f.Fd()), was) }
			go func() { // until the program ends
				var b [1]byte
				for {
					if n, err := f.Read(b[:]); n == 0 || err != nil {
						return
					}
					pressed <- b[0]
				}
			}()
		}
	}
	fmt.Fprint(out, "\x1b[?1049h\x1b[?25l")
	return pressed, func() {
		fmt.Fprint(out, "\x1b[?25h\x1b[?1049l")
		back()
	}
}
