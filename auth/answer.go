package auth

import (
	"io"
	"net/http"

	"github.com/hubcache/hubcache/answer"
)

// ReadAnswer returns a response with a status of 400 or more as what package answer judges. It
// reads the body up to answer.MaxBody, and doesn't close it. An error of the body isn't
// returned: what arrived isn't the API's answer then.
func ReadAnswer(from answer.Place, resp *http.Response) answer.Answer {
	a := readHeader(from, resp)
	a.Head = resp.Request != nil && resp.Request.Method == http.MethodHead
	if !a.Head {
		a.Body, _ = io.ReadAll(io.LimitReader(resp.Body, answer.MaxBody))
	}
	return a
}

// readHeader is ReadAnswer for who must not read the body: the answer is as that to a HEAD.
func readHeader(from answer.Place, resp *http.Response) answer.Answer {
	a := answer.Answer{From: from, Head: true, Status: resp.StatusCode, Header: resp.Header}
	for _, c := range ParseChallenges(resp.Header) {
		if c.Scheme == "bearer" && c.Params["realm"] != "" {
			a.Scheme, a.Problem = c.Scheme, c.Params["error"]
			break
		}
		if c.Scheme == "basic" && a.Scheme == "" {
			a.Scheme = c.Scheme
		}
	}
	return a
}
