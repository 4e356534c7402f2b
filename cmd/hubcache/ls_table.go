package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/hubcache/hubcache/admin"
)

// readImages reads the document of GET /api/v1/images, and calls each with every image, which isn't in
// the document that it returns: there may be 100,000. Errors: that it isn't such a document, or ends
// early.
func readImages(r io.Reader, each func(admin.Image)) (doc admin.Images, err error) {
	d := json.NewDecoder(r)
	rest := map[string]any{"schema": &doc.Schema, "total": &doc.Total, "other_bytes": &doc.Other, "next": &doc.Next, "waiting": &doc.Waiting}
	if err := expect(d, '{'); err != nil {
		return doc, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return doc, err
		}
		name, _ := key.(string)
		into, ok := rest[name]
		if name == "images" {
			err = readEach(d, each)
		} else if ok {
			err = d.Decode(into)
		} else { // a newer server says more
			err = d.Decode(new(json.RawMessage))
		}
		if err != nil {
			return doc, err
		}
	}
	return doc, expect(d, '}')
}

// readEach reads the array of images.
func readEach(d *json.Decoder, each func(admin.Image)) error {
	if err := expect(d, '['); err != nil {
		return err
	}
	for d.More() {
		var i admin.Image
		if err := d.Decode(&i); err != nil {
			return err
		}
		each(i)
	}
	return expect(d, ']')
}

// expect reads one delimiter.
func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err == nil && t != want {
		return fmt.Errorf("%v instead of %v", t, want)
	}
	return err
}

// imageTable is the table of ls. It keeps the text of all cells in one piece, because the widths of the
// columns are known only when all images are.
type imageTable struct {
	now    time.Time
	text   []byte
	ends   []int // where in text each cell ends, row by row
	widths []int
}

func newImageTable(now time.Time) *imageTable {
	t := &imageTable{now: now}
	for _, title := range []string{"IMAGE", "SIZE", "SHARED", "STATE", "PINNED", "PULLS", "LAST USE"} {
		t.widths = append(t.widths, len(title))
		t.text = append(t.text, title...)
		t.ends = append(t.ends, len(t.text))
	}
	return t
}

// add adds a row.
func (t *imageTable) add(i admin.Image) {
	state, pinned := "complete", "no"
	if !i.Complete {
		state = "partial"
	}
	switch {
	case i.Protected:
		pinned = "yes"
	case i.Pinned:
		pinned = "no room"
	}
	cells := [...]string{shortReference(i.Reference), human(i.Bytes), human(i.Shared), state, pinned, strconv.FormatInt(i.Pulls, 10), inWords(t.now.Sub(i.LastUse)) + " ago"}
	for column, cell := range cells {
		t.widths[column] = max(t.widths[column], utf8.RuneCountInString(cell))
		t.text = append(t.text, cell...)
		t.ends = append(t.ends, len(t.text))
	}
}

// print prints the table, with bytes rounded to powers of 1024, and what doc says of the rest.
func (t *imageTable) print(out io.Writer, doc admin.Images) error {
	w := bufio.NewWriterSize(out, 64<<10) // it keeps its first error
	const gap = "                                                                "
	begin, columns := 0, len(t.widths)
	if len(t.ends) == columns {
		columns = 0 // no title without an image
		t.ends = nil
	}
	for n, end := range t.ends {
		cell, column := t.text[begin:end], n%columns
		begin = end
		w.Write(cell)
		if column == columns-1 {
			w.WriteByte('\n')
			continue
		}
		for left := t.widths[column] + 2 - utf8.RuneCount(cell); left > 0; left -= len(gap) {
			w.WriteString(gap[:min(left, len(gap))])
		}
	}
	fmt.Fprintf(w, "%s; %s of the cache belong to no image\n", plural(int64(doc.Total), "image"), human(doc.Other))
	if len(doc.Waiting) > 0 {
		w.WriteByte('\n')
		if err := printWaiting(w, doc.Waiting, time.Now()); err != nil {
			return err
		}
	}
	return w.Flush()
}
