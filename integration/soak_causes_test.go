//go:build integration

package integration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const (
	causeSilence = "registry silent"
	cause429     = "registry 429"

	// remembered is how long before a request a fault may have been that made it fail: the
	// longest pause of 20 s, and the time that three attempts take.
	remembered = 30 * time.Second
)

// failedRequest is a request that failed, and when.
type failedRequest struct {
	repository   string
	blob         digest.Digest // empty: a manifest
	began, ended time.Time
	err          error
}

func (f failedRequest) Error() string { return f.err.Error() }
func (f failedRequest) Unwrap() error { return f.err }

// what is what was asked for, and how the client saw the failure.
func (f failedRequest) what() string {
	kind := "manifest"
	if f.blob != "" {
		kind = "blob"
	}
	if status, ok := errors.AsType[statusError](f.err); ok {
		return fmt.Sprintf("%s, status %d (%s)", kind, status.status, status.cause)
	}
	return kind + ", connection broken"
}

// asks reports whether the Hub had the request e for the sake of f.
func (f failedRequest) asks(e hubtest.Entry) bool {
	if e.Face == hubtest.Token || f.blob == "" {
		return e.Kind != "blobs" && slices.Contains(strings.Split(e.Repository, ","), f.repository)
	}
	return e.Reference == string(f.blob)
}

// before reports whether e may be the cause of f by its time.
func (f failedRequest) before(e hubtest.Entry) bool {
	return e.Started.Before(f.ended) && f.began.Sub(e.Started) < remembered
}

// causes are failed requests by the fault that made them fail.
type causes struct {
	rows    map[string]int // by the name of the fault, and what the client saw
	single  int            // bodies that broke, with no other fault of their blob just before or after
	refused int            // requests that began after such a body had ended, and got an error status for it
}

// causesOf finds for each failure the last fault of what it asked for. Without one, that is the
// last fault that stops all requests: a 429, or a silence, for which the circuit breaker opens. An
// answer that names upstream's 429 has no other cause than a 429.
func causesOf(failures []failedRequest, ledger hubtest.Ledger) causes {
	faults := ledger.Filter(func(e hubtest.Entry) bool { return e.Fault })
	single := map[int]bool{}
	for i, e := range faults {
		if e.Face == hubtest.CDN && e.Kind == "blobs" && alone(faults, i) {
			single[i] = true
		}
	}
	c := causes{rows: map[string]int{}, single: len(single)}
	for _, f := range failures {
		limited := strings.Contains(f.what(), "(HTTP 429)")
		own, all := -1, -1
		for i, e := range faults {
			if !f.before(e) || limited && e.Rule != cause429 {
				continue
			}
			if f.asks(e) {
				own = i
			} else if e.Rule == cause429 || e.Rule == causeSilence {
				all = i
			}
		}
		name := "no fault"
		switch {
		case strings.Contains(f.what(), "limits."): // the load itself
		case own >= 0:
			name = faults[own].Rule
			_, status := errors.AsType[statusError](f.err)
			if single[own] && status && f.began.After(faults[own].Ended) {
				c.refused++
			}
		case all >= 0:
			name = faults[all].Rule + " of another request"
		}
		c.rows[name+": "+f.what()]++
	}
	return c
}

// alone reports whether no other fault has met the same blob at about the time of fault i.
func alone(faults hubtest.Ledger, i int) bool {
	for j, e := range faults {
		if j != i && e.Reference == faults[i].Reference && e.Started.Sub(faults[i].Started).Abs() < remembered {
			return false
		}
	}
	return true
}

// TestSoakCauses: a failure has the fault of its own blob as its cause, and not one of another
// blob or of long ago.
func TestSoakCauses(t *testing.T) {
	t0 := time.Now()
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	fault := func(rule, blob string, s int) hubtest.Entry {
		return hubtest.Entry{Face: hubtest.CDN, Kind: "blobs", Reference: blob, Fault: true, Rule: rule, Started: at(s), Ended: at(s)}
	}
	failed := func(blob string, s int, err error) failedRequest {
		return failedRequest{repository: "library/app", blob: digest.Digest(blob), began: at(s), ended: at(s + 1), err: err}
	}
	ledger := hubtest.Ledger{
		fault("wrong byte", "a", 0), fault("body cut", "d", 61), fault("body cut", "b", 1), fault("body cut", "c", 2), fault("body reset", "c", 3),
		{Face: hubtest.Registry, Kind: "manifests", Repository: "library/other", Fault: true, Rule: cause429, Started: at(60)},
	}
	refused, broken := statusError{429, "remembered"}, errors.New("EOF")
	limits := statusError{429, "upstream limits requests (HTTP 429)"}
	got := causesOf([]failedRequest{
		failed("a", 0, broken), failed("a", 4, refused), failed("c", 5, refused), failed("b", 40, refused), failed("b", 61, refused),
		failed("d", 62, limits),
		failed("a", 2, statusError{429, "limits.transfers"}),
	}, ledger)
	want := map[string]int{
		"wrong byte: blob, connection broken":                                                    1,
		"wrong byte: blob, status 429 (remembered)":                                              1,
		"body reset: blob, status 429 (remembered)":                                              1,
		"no fault: blob, status 429 (remembered)":                                                1,
		cause429 + " of another request: blob, status 429 (remembered)":                          1,
		cause429 + " of another request: blob, status 429 (upstream limits requests (HTTP 429))": 1,
		"no fault: blob, status 429 (limits.transfers)":                                          1,
	}
	if fmt.Sprint(got.rows) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got.rows, want)
	}
	if got.single != 3 || got.refused != 1 {
		t.Errorf("%d single, %d refused", got.single, got.refused)
	}
}
