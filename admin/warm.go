package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
)

// Warmer brings images into the cache, and looks which are there. registry.Registry is one; it says
// what the methods do.
type Warmer interface {
	Warm(context.Context, []name.Reference, registry.WarmOptions) []registry.Warmed
	Cached(context.Context, []name.Reference, []v1.Platform) []registry.Cached
}

// WarmRequest is the body of POST /api/v1/warm.
type WarmRequest struct {
	References []string `json:"references"` // as for docker pull
	Platforms  []string `json:"platforms"`  // like linux/amd64; none: those that are cached of an image, else the server's own
	Refresh    bool     `json:"refresh"`    // ask what tags name now, whatever their TTL
	Check      bool     `json:"check"`      // fetch nothing, and say what is cached
}

// WarmEvent is a line of the answer to POST /api/v1/warm, but for the last. One field beside
// Reference isn't null.
type WarmEvent struct {
	Reference string      `json:"reference"` // whole
	Plan      *WarmPlan   `json:"plan,omitempty"`
	Blob      *WarmBlob   `json:"blob,omitempty"`
	Result    *WarmResult `json:"result,omitempty"` // the last of the reference
}

// WarmPlan says what an image needs.
type WarmPlan struct {
	Bytes   int64 `json:"bytes"`
	Missing int64 `json:"missing_bytes"` // what is going to be fetched
}

// WarmBlob is a config or layer that is being fetched.
type WarmBlob struct {
	Digest   string `json:"digest"`
	Size     int64  `json:"size"`     // bytes; -1 while unknown
	Received int64  `json:"received"` // bytes; equal to Size when all of it is cached
}

// WarmResult is what became of a reference, or what is cached of it.
type WarmResult struct {
	// State is complete, partial or absent; failed if it could not be warmed, or looked at.
	State   string  `json:"state"`
	Digest  string  `json:"digest"` // what the reference names; "" if that isn't known
	Bytes   int64   `json:"bytes"`  // of all that belongs to it, as far as is known
	Fetched int64   `json:"fetched_bytes"`
	Missing int64   `json:"missing_bytes"` // of a check
	Stale   bool    `json:"stale"`         // the upstream could not be asked what the tag names now, or only with pulls of the quota reserve
	Error   *string `json:"error"`         // null unless State is failed
	Reason  string  `json:"reason"`        // of the error, if it is one of these: no_room, quota_reserve, unserved (a registry that isn't cached)
}

// Bounds of a request.
const (
	maxWarmBody       = 1 << 20
	maxWarmReferences = 1000
)

// warm warms images, and streams how far it has come.
func (a *admin) warm(w http.ResponseWriter, req *http.Request) error {
	var body WarmRequest
	in := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxWarmBody))
	in.DisallowUnknownFields()
	if err := in.Decode(&body); err != nil {
		return faultf(http.StatusBadRequest, "the body is not a request to warm images: %v", err)
	}
	refs, wanted, err := body.parse()
	if err != nil {
		return err
	}
	note(req, "references", shortened(body.References))
	s, failed := newStream(w), 0
	if body.Check {
		for _, c := range a.Warmer.Cached(req.Context(), refs, wanted) {
			r := &WarmResult{State: string(c.State), Digest: string(c.Digest), Bytes: c.Bytes, Missing: c.Missing}
			r.setError(c.Err)
			s.send(WarmEvent{Reference: c.Reference.String(), Result: r}) // an error means that the client has left
		}
		s.end(nil)
		return nil
	}
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	report := func(e registry.WarmEvent) {
		if s.send(warmEventOf(e)) != nil {
			cancel() // the client has left
		}
	}
	for _, res := range a.Warmer.Warm(ctx, refs, registry.WarmOptions{Platforms: wanted, Refresh: body.Refresh, Report: report}) {
		if res.Err != nil {
			failed++
		}
	}
	note(req, "failed", failed)
	if failed > 0 {
		err = fmt.Errorf("%d of %d images could not be warmed", failed, len(refs))
	}
	s.end(err)
	return nil
}

// parse checks the request. Its error is a fault.
func (r *WarmRequest) parse() (refs []name.Reference, wanted []v1.Platform, err error) {
	if len(r.References) == 0 || len(r.References) > maxWarmReferences {
		return nil, nil, faultf(http.StatusBadRequest, "references: from 1 to %d are wanted", maxWarmReferences)
	}
	for _, text := range r.References {
		ref, err := name.ParseReference(text)
		if err != nil {
			return nil, nil, faultf(http.StatusBadRequest, "%v", err)
		}
		if !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	for _, text := range r.Platforms {
		p, err := platforms.Parse(text)
		if err != nil || !strings.Contains(text, "/") {
			return nil, nil, faultf(http.StatusBadRequest, "%q is not a platform like linux/amd64 or linux/arm/v7", text)
		}
		wanted = append(wanted, p)
	}
	return refs, wanted, nil
}

// shortened is a list for the log.
func shortened(list []string) string {
	const most = 20
	if len(list) <= most {
		return strings.Join(list, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], " "), len(list)-most)
}

func warmEventOf(e registry.WarmEvent) WarmEvent {
	out := WarmEvent{Reference: e.Reference.String()}
	switch {
	case e.Plan != nil:
		out.Plan = &WarmPlan{e.Plan.Bytes, e.Plan.Missing}
	case e.Blob != nil:
		out.Blob = &WarmBlob{string(e.Blob.Digest), e.Blob.Size, e.Blob.Received}
	case e.Result != nil:
		r := e.Result
		out.Result = &WarmResult{State: string(registry.Complete), Digest: string(r.Digest), Bytes: r.Bytes, Fetched: r.Fetched, Stale: r.Stale}
		out.Result.setError(r.Err)
	}
	return out
}

// setError notes why something failed, if err isn't nil.
func (r *WarmResult) setError(err error) {
	if err == nil {
		return
	}
	text := err.Error()
	r.State, r.Error = "failed", &text
	for reason, is := range map[string]error{"no_room": registry.ErrNoRoom, "quota_reserve": registry.ErrReserve, "unserved": registry.ErrUnserved} {
		if errors.Is(err, is) {
			r.Reason = reason
		}
	}
}
