// Package cooldown decides when to try again.
//
// Pause is for a server that answered 429 Too Many Requests. It lasts as long as the server
// says or, if the server says nothing, a time that doubles with each pause. Memory is for
// what has just failed or was just done, by key.
package cooldown

import "time"

// Pause is a time in which one server, or one limit of a server, is not asked. It has no
// clock: callers pass the time. The zero value is not in a pause, and begins only the
// pauses whose length the server names. Not safe for concurrent use.
type Pause struct {
	First time.Duration // the first pause whose length the server didn't name; 0 or less: none
	Most  time.Duration // doubling ends here; what a server names may be longer

	until time.Time     // end of the pause; zero: there was none yet
	last  time.Duration // length of the last pause that the server didn't name; 0: the next is First
}

// Begin starts a pause at now and returns its length. wait is the length that the server
// named; 0 or less: it named none.
//
// Several requests that were under way together are answered 429 together, and that
// should count once. So a 429 that names no length changes nothing during a pause: Begin
// then returns what is left of it. A named length makes the pause longer and never shorter.
func (p *Pause) Begin(wait time.Duration, now time.Time) time.Duration {
	if wait <= 0 {
		if left := p.Left(now); left > 0 {
			return left
		}
		p.last = Double(p.last, p.First, p.Most)
		wait = p.last
	}
	if until := now.Add(wait); until.After(p.until) {
		p.until = until
	}
	return wait
}

// Left returns how long the pause still lasts at now, or 0.
func (p *Pause) Left(now time.Time) time.Duration { return max(p.until.Sub(now), 0) }

// Until returns when the pause ends or ended. It is the zero time before the first one.
func (p *Pause) Until() time.Time { return p.until }

// Reset makes the next pause whose length the server doesn't name First again. Callers use
// it after a success. It doesn't end the pause under way: the success may be older than
// the 429.
func (p *Pause) Reset() { p.last = 0 }

// Double returns the length of the pause after one of last: first if last is 0, then
// twice as long each time, and never more than most.
func Double(last, first, most time.Duration) time.Duration {
	return min(max(2*last, first), most)
}
