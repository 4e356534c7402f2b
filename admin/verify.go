package admin

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/hubcache/hubcache/registry"
)

// VerifyRequest is the body of POST /api/v1/verify; none means its zero value.
type VerifyRequest struct {
	Repair bool `json:"repair"` // fetch again what was bad
}

// VerifyEvent is a line of the answer to POST /api/v1/verify, but for the last. One field isn't
// null.
type VerifyEvent struct {
	Progress *VerifyProgress `json:"progress,omitempty"`
	Bad      *BadBlob        `json:"bad,omitempty"`    // it was just found, and has been dropped
	Repair   *BadBlob        `json:"repair,omitempty"` // it was fetched again, or not
}

// VerifyProgress is how far it has come.
type VerifyProgress struct {
	Blobs    int   `json:"blobs"` // manifests too
	AllBlobs int   `json:"all_blobs"`
	Bytes    int64 `json:"bytes"`
	AllBytes int64 `json:"all_bytes"`
}

// BadBlob is a blob that is not as it came.
type BadBlob struct {
	Digest       string   `json:"digest"`
	Size         int64    `json:"size"` // bytes that it should have
	Manifest     bool     `json:"manifest"`
	Why          string   `json:"why"`
	Dropped      bool     `json:"dropped"`      // false: its file can't be opened, and is still there
	Repositories []string `json:"repositories"` // some that have it; never null, and empty without a repair
	Repaired     bool     `json:"repaired"`
	Error        *string  `json:"error"` // why it wasn't repaired; null if it was, or nobody asked for it
}

// maxVerifyBody, in bytes, is more than a VerifyRequest has.
const maxVerifyBody = 1 << 10

// verify hashes all that is cached, and streams how far it has come and what was bad.
func (a *admin) verify(w http.ResponseWriter, req *http.Request) error {
	var body VerifyRequest
	in := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxVerifyBody))
	in.DisallowUnknownFields()
	if err := in.Decode(&body); err != nil && err != io.EOF {
		return faultf(http.StatusBadRequest, "the body is not a request to verify the cache: %v", err)
	}
	var s *stream // from its first event on, errors can only be told in the last line
	_, err := a.Verify(req.Context(), registry.VerifyOptions{Repair: body.Repair, Report: func(e registry.VerifyEvent) {
		if s == nil {
			s = newStream(w)
		}
		s.send(verifyEventOf(e)) // when the client has left, so has the request's context
	}})
	if s == nil {
		if errors.Is(err, registry.ErrVerifying) {
			return fault{http.StatusConflict, err}
		}
		if err != nil {
			return err
		}
		s = newStream(w)
	}
	s.end(err)
	return nil
}

func verifyEventOf(e registry.VerifyEvent) VerifyEvent {
	switch {
	case e.Progress != nil:
		p := VerifyProgress(*e.Progress)
		return VerifyEvent{Progress: &p}
	case e.Bad != nil:
		return VerifyEvent{Bad: badBlobOf(e.Bad)}
	}
	return VerifyEvent{Repair: badBlobOf(e.Repair)}
}

func badBlobOf(b *registry.BadBlob) *BadBlob {
	out := &BadBlob{Digest: string(b.Digest), Size: b.Size, Manifest: b.Manifest, Dropped: b.Dropped, Repositories: append([]string{}, b.Repositories...), Repaired: b.Repaired}
	if b.Why != nil {
		out.Why = b.Why.Error()
	}
	if b.Err != nil {
		text := b.Err.Error()
		out.Error = &text
	}
	return out
}
