package main

import (
	"fmt"
	"io"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/name"
)

// warmProgress shows how far a warm has come. It is not safe for concurrent use.
type warmProgress interface {
	event(admin.WarmEvent)
	// end takes away what is shown. Nothing may be called after it.
	end()
}

// newWarmProgress returns bars for a terminal, and lines for all else; with quiet nothing is shown.
func newWarmProgress(w io.Writer, images int, quiet bool) warmProgress {
	switch {
	case quiet:
		return &warmLines{w: io.Discard}
	case drawable(w):
		return newWarmBars(w, images)
	}
	return &warmLines{w: w}
}

// warmLines prints a line for each image whose size is known, and for each blob that has come.
type warmLines struct{ w io.Writer }

func (l *warmLines) event(e admin.WarmEvent) {
	image := name.Familiar(e.Reference)
	switch {
	case e.Plan != nil:
		fmt.Fprintf(l.w, "%s: %s, of which %s are missing\n", image, human(e.Plan.Bytes), human(e.Plan.Missing))
	case e.Blob != nil && e.Blob.Received == e.Blob.Size:
		fmt.Fprintf(l.w, "%s: %s, %s\n", image, shortDigest(e.Blob.Digest), human(e.Blob.Size))
	case e.Result != nil && e.Result.Error == nil:
		fmt.Fprintf(l.w, "%s: %s\n", image, e.Result.State)
	}
}

func (l *warmLines) end() {}

// warmBars draws a bar for each blob on its way, and one below for everything.
type warmBars struct {
	all     *mpb.Progress
	total   *mpb.Bar
	bars    map[string]*mpb.Bar // of blobs on their way, by image and digest
	here    map[string]int64    // bytes of each blob that have come since the start
	missing int64               // of all images whose size is known
	images  int                 // that are still to come
}

func newWarmBars(w io.Writer, images int) *warmBars {
	b := &warmBars{all: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40)), bars: map[string]*mpb.Bar{}, here: map[string]int64{}, images: images}
	b.total = b.all.AddBar(0, mpb.BarPriority(1<<20), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name("all", decor.WCSyncSpaceR), decor.Any(func(decor.Statistics) string { return plural(int64(b.images), "image") + " to come" }, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
	return b
}

func (b *warmBars) event(e admin.WarmEvent) {
	switch {
	case e.Plan != nil:
		b.missing += e.Plan.Missing
		b.total.SetTotal(b.missing, false)
	case e.Blob != nil:
		b.blob(e)
	case e.Result != nil:
		b.images--
	}
}

// blob moves the bar of a blob.
func (b *warmBars) blob(e admin.WarmEvent) {
	key := e.Reference + " " + e.Blob.Digest
	bar := b.bars[key]
	if bar == nil {
		bar = b.all.AddBar(max(e.Blob.Size, 0), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(clip(name.Familiar(e.Reference)), decor.WCSyncSpaceR), decor.Name(shortDigest(e.Blob.Digest), decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
		b.bars[key] = bar
	}
	b.total.IncrInt64(e.Blob.Received - b.here[key])
	b.here[key] = e.Blob.Received
	if e.Blob.Size > 0 {
		bar.SetTotal(e.Blob.Size, false)
	}
	bar.SetCurrent(e.Blob.Received)
	if e.Blob.Received == e.Blob.Size {
		bar.SetTotal(-1, true)
	}
}

// warmColumns is how much of a name is shown before a bar.
const warmColumns = 20

func clip(s string) string {
	if r := []rune(s); len(r) > warmColumns {
		return "…" + string(r[len(r)-warmColumns+1:])
	}
	return s
}

func (b *warmBars) end() {
	for _, bar := range b.bars {
		bar.Abort(true)
	}
	b.total.Abort(true)
	b.all.Wait()
}
