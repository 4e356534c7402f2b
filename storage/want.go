package storage

import "slices"

// Want is what a reader of an ingest needs next.
type Want struct {
	At    int64 // the next byte that it needs
	From  int64 // where it began to read
	To    int64 // where its range ends; -1: at the end of the blob
	Part  bool  // it has asked for nothing behind To, and not for all of the blob
	Waits bool  // it began to wait for the byte at At
}

// ReadsParts says that the reader serves parts of the blob, in that order, for which no digest
// speaks: nothing is held back from it until the digest of the blob is known. Call it before the
// first reading.
func (r *Reader) ReadsParts(parts []Span) {
	in := r.in
	in.mu.Lock()
	defer in.mu.Unlock()
	r.part, r.parts = true, parts
	r.nextPart()
}

// Parts reports whether ReadsParts was called.
func (r *Reader) Parts() bool { return r.part }

// ReadsFrom says that the reader reads the blob from off to its end.
func (r *Reader) ReadsFrom(off int64) {
	in := r.in
	in.mu.Lock()
	defer in.mu.Unlock()
	r.want = Want{At: off, From: off, To: -1}
}

// nextPart makes the first of the parts what the reader needs next. The ingest's mu is held.
func (r *Reader) nextPart() {
	if len(r.parts) == 0 {
		return
	}
	p := r.parts[0]
	r.parts = r.parts[1:]
	r.want = Want{At: p.From, From: p.From, To: p.To, Part: true}
}

// OnWait sets the function that is told when a reader begins to wait for bytes that haven't
// arrived. It is called by the goroutine of the reader, without a lock. Call OnWait before the
// first Reader.
func (in *Ingest) OnWait(f func(Want)) { in.onWait = f }

// wants takes note that the reader needs the bytes from off on, and tells the owner if they aren't
// there.
func (r *Reader) wants(off int64) {
	in := r.in
	in.mu.Lock()
	for r.part && (off < r.want.From || off >= r.want.To) && len(r.parts) > 0 {
		r.nextPart()
	}
	r.want.At = off
	r.want.Waits = in.phase == running && in.have.end(off) <= off
	w := r.want
	in.mu.Unlock()
	if w.Waits && in.onWait != nil {
		in.onWait(w)
	}
}

// maxParts is how many parts of one reader Wants returns.
const maxParts = 16

// Wants returns what the readers need next: first those who began first, and of one that reads
// several parts, the next ones.
func (in *Ingest) Wants() []Want {
	in.mu.Lock()
	defer in.mu.Unlock()
	wants := make([]Want, 0, len(in.reading))
	for _, r := range in.reading {
		wants = append(wants, r.want)
		for _, p := range r.parts[:min(len(r.parts), maxParts)] {
			wants = append(wants, Want{At: p.From, From: p.From, To: p.To, Part: true})
		}
	}
	return wants
}

// ReadAsWhole reports whether a reader reads all of the blob, or all of its rest.
func (in *Ingest) ReadAsWhole() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.ContainsFunc(in.reading, func(r *Reader) bool { return !r.part })
}
