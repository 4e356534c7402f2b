// Package answer tells what an answer of an upstream host is a statement about: what was asked
// for, the right to read it, the token, a limit, or only the health of the host.
//
// It matters for 401, 403 and 404. From the registry API they are about a repository. From a
// firewall, a captive portal or a proxy whose registry is down, and from Docker Hub itself
// during incidents, they are not, and then no cached image may be given up because of them.
// There is one table for the registry, its token service and its CDN.
package answer

import (
	"encoding/json"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// Place is what was asked.
type Place uint8

// The places.
const (
	Registry     Place = iota // the registry's API, but for referrers
	Referrers                 // referrers at the registry, which many registries don't know
	TokenService              // where the registry sends clients for tokens
	CDN                       // where the registry redirects to
)

// MaxBody is how many bytes of an error's body are worth reading: the errors of registries have
// some hundreds. An error that is longer can't be read, and so isn't the API's.
const MaxBody = 64 << 10

// Answer is an answer with a status of 400 or more.
type Answer struct {
	From   Place
	Head   bool // the request was a HEAD: there is no body that could tell
	Status int
	Header http.Header
	Body   []byte // up to MaxBody bytes

	// Of the challenge of a 401; empty if there is none that is understood.
	Scheme  string // lower case: "bearer", "basic"
	Problem string // the challenge's error, as RFC 6750 §3.1 has it: "insufficient_scope"
}

// Subject is what an answer is a statement about.
type Subject uint8

// The subjects.
const (
	Service Subject = iota // the host, which is broken or isn't the right one: nothing is known about what was asked for
	Unclear                // a HEAD's status says something, but not who says it: the body of a GET tells
	Missing                // what was asked for: it isn't there
	Access                 // the repository: it may not be read, or doesn't exist
	Token                  // the token, which isn't valid: another one may be
	Limit                  // how much is asked
)

// String returns the name of the constant in lower case.
func (s Subject) String() string {
	return [...]string{"service", "unclear", "missing", "access", "token", "limit"}[min(s, Limit)]
}

// row says what an answer is about if it comes from one of these places with one of these
// statuses, and if says is true for it.
type row struct {
	places   []Place
	statuses []int
	says     func(Answer) bool
	subject  Subject
}

var (
	everywhere = []Place{Registry, Referrers, TokenService, CDN}
	api        = []Place{Registry, Referrers}
	refusals   = []int{http.StatusUnauthorized, http.StatusForbidden}
	absences   = []int{http.StatusNotFound, http.StatusGone}
)

// table is read from the top; the first row that fits counts. What no row fits is about the
// Service: all other statuses, all that the CDN says (of its own URLs, which expire), and pages
// of HTML or text.
var table = []row{
	{everywhere, []int{http.StatusTooManyRequests}, always, Limit},

	// Only what reads like an answer of a program is one of the token service. ghcr.io says so
	// that a repository is private; Docker Hub's says it to everybody when it is in trouble.
	{[]Place{TokenService}, refusals, isJSON, Access},

	// RFC 6750 §3.1. Nothing but a registry that knows the token says the first two.
	{api, []int{http.StatusUnauthorized}, problem("insufficient_scope"), Access},
	{api, []int{http.StatusUnauthorized}, problem("invalid_token"), Token},
	{api, []int{http.StatusUnauthorized}, otherProblem, Service},

	{api, refusals, code(absent, hidden), Access},
	{api, absences, code(hidden), Access},
	{api, absences, code(absent), Missing},
	{[]Place{Referrers}, []int{http.StatusNotFound}, noRoute, Missing},
	{[]Place{Referrers}, []int{http.StatusNotFound}, code(noMethod), Missing},

	// Registries challenge without a body, too. Proxies use Basic, and not Bearer.
	{api, []int{http.StatusUnauthorized}, bearerAlone, Access},

	{api, refusals, markedHead, Access},
	{api, absences, markedHead, Missing},
	{api, slices.Concat(refusals, absences), isHead, Unclear},

	// There are registries without HEAD.
	{api, []int{http.StatusMethodNotAllowed, http.StatusNotImplemented}, isHead, Unclear},
}

// Subject returns what a is a statement about.
func (a Answer) Subject() Subject {
	for _, r := range table {
		if slices.Contains(r.places, a.From) && slices.Contains(r.statuses, a.Status) && r.says(a) {
			return r.subject
		}
	}
	return Service
}

func always(Answer) bool   { return true }
func isHead(a Answer) bool { return a.Head }

// problem is true for a challenge with this error.
func problem(name string) func(Answer) bool {
	return func(a Answer) bool { return a.Scheme == "bearer" && a.Problem == name }
}

func otherProblem(a Answer) bool { return a.Problem != "" }

// bearerAlone is true for a Bearer challenge in an answer without a body.
func bearerAlone(a Answer) bool { return a.Scheme == "bearer" && len(a.Body) == 0 }

// markedHead is true for a HEAD whose headers are those of the registry API. A content type
// alone isn't enough: gateways answer with JSON, too.
func markedHead(a Answer) bool {
	return a.Head && Marked(a.Header) && strings.HasSuffix(mediaType(a.Header), "json")
}

// Marked reports whether headers say that the answer is the registry API's.
func Marked(h http.Header) bool {
	return strings.HasPrefix(h.Get("Docker-Distribution-Api-Version"), "registry/2")
}

func mediaType(h http.Header) string {
	t, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	return t
}

// The codes of the registry API's errors that say something about what was asked for. They
// are those of distribution and the OCI distribution-spec for a pull; Harbor adds NOT_FOUND and
// FORBIDDEN. UNKNOWN, UNAVAILABLE and TOOMANYREQUESTS say nothing, whatever
// the status.
var (
	absent = []string{"MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "NAME_INVALID", "TAG_INVALID", "DIGEST_INVALID", "NOT_FOUND"}
	hidden = []string{"UNAUTHORIZED", "DENIED", "FORBIDDEN"}

	// Of go-containerregistry's registry, and others, about a path that they don't know.
	noMethod = []string{"METHOD_UNKNOWN", "UNSUPPORTED"}
)

// code is true for a body that is the registry API's error with one of these codes.
func code(sets ...[]string) func(Answer) bool {
	return func(a Answer) bool {
		c := Code(a.Body)
		for _, set := range sets {
			if slices.Contains(set, c) {
				return true
			}
		}
		return false
	}
}

// Code returns the code of the first error of a body that has the form of the registry API's
// errors, {"errors":[{"code":"MANIFEST_UNKNOWN"}]}, or "".
func Code(body []byte) string {
	var e struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return e.Errors[0].Code
}

// isJSON is true for a body that is a JSON object. The content type isn't asked: the body is
// there to be read.
func isJSON(a Answer) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal(a.Body, &object) == nil && object != nil
}

// noRoute is true for what Go's servers, distribution's among them, say of a path that they
// don't know. A registry without referrers is fine.
func noRoute(a Answer) bool { return strings.TrimSpace(string(a.Body)) == "404 page not found" }
