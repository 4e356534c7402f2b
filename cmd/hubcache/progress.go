package main

import (
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// byteProgress is a bar on a terminal for work whose bytes are known. Without a terminal it shows
// nothing. It is not safe for concurrent use.
type byteProgress struct {
	all *mpb.Progress
	bar *mpb.Bar // nil: nothing is shown
}

func newByteProgress(w io.Writer, total int64) *byteProgress {
	p := &byteProgress{}
	if total > 0 && drawable(w) {
		p.all = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
		p.bar = p.all.AddBar(total, mpb.BarRemoveOnComplete(), mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Name("  "), decor.Percentage()))
	}
	return p
}

// add says that so many bytes more are done.
func (p *byteProgress) add(bytes int64) {
	if p.bar != nil {
		p.bar.IncrInt64(bytes)
	}
}

// Write is add for what is copied through it.
func (p *byteProgress) Write(b []byte) (int, error) {
	p.add(int64(len(b)))
	return len(b), nil
}

// end takes the bar away. Nothing may be called after it.
func (p *byteProgress) end() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.all.Wait()
	}
}

func isFolder(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
