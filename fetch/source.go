package fetch

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// Source is where content comes from: an upstream registry, or what stands in front of one.
// Repositories are named as the upstream names them ("library/redis"). What a source
// returns need not be verified: this package and its callers do that. All methods are safe
// for concurrent use; an error is final, since a source tries again by itself.
type Source interface {
	// Resolve returns what a tag or digest names, or the size of a blob, without its bytes.
	Resolve(ctx context.Context, repository string, k Kind, reference string) (Descriptor, error)

	// Manifest returns a manifest by tag or digest.
	Manifest(ctx context.Context, repository, reference string) (Manifest, error)

	// Confirm returns nil if the repository has the manifest or blob.
	Confirm(ctx context.Context, repository string, k Kind, d digest.Digest) error

	// Blob returns a blob of the repository. It makes no request.
	Blob(repository string, d digest.Digest) BlobSource
}

// Kind is what a digest names.
type Kind string

// The kinds. Their values are the folders of a registry's API.
const (
	Manifests Kind = "manifests"
	Blobs     Kind = "blobs"
)

// Descriptor is what a source says of a manifest or blob without its bytes.
type Descriptor struct {
	Digest    digest.Digest // "" when the source names none
	MediaType string
	Size      int64 // bytes; -1 when the source names none

	// Checked is when the upstream said so; zero: just now. A source that remembers what it was
	// told may answer with it while the upstream is down.
	Checked time.Time
}

// Manifest is a manifest's bytes, not verified.
type Manifest struct {
	MediaType string
	Body      []byte
	Host      string // which host sent it, for errors
}

// BlobSource is where the bytes of one blob come from.
type BlobSource interface {
	// Open asks for a part of the blob and returns when the headers of the answer have
	// come. Its body resumes by itself what breaks. ctx ends the request and all reading; the
	// error then wraps context.Cause(ctx), so that a cancelled download isn't taken for a failure.
	Open(ctx context.Context, p Part) (*Body, error)
}

// PeerHeader marks a request of another node of the shared tier to the pull API. Its value is the token
// of the lease by which the node that is asked fetches the blob.
const PeerHeader = "X-Hubcache-Lease"

// Ender is a BlobSource that wants to know how a download from it ended: with nil, the blob is in the
// store and verified. It must return at once.
type Ender interface {
	Ended(err error)
}

// Part is which bytes of a blob to read. With Claim, a part that begins behind the blob's end
// means the whole blob.
type Part struct {
	From, To int64 // To is exclusive; -1: to the blob's end, wherever that is
	Size     int64 // of the blob; -1: unknown
	Claim    bool  // Size is what a manifest claims: the source's own length decides
	Whole    bool  // where the source knows no ranges, read on to the blob's end
}

// Body is a part of a blob on its way. Read returns io.EOF at To, or, where To is -1, at the
// end of the blob. Not safe for concurrent use; close it. It may be closed twice.
type Body struct {
	io.ReadCloser
	From, To int64 // To is exclusive; -1 while nobody knows where the blob ends
	Size     int64 // of the whole blob; -1 while nobody knows it
	Ranged   bool  // the source knows ranges
}

// Blob is a blob to fetch, under a repository.
type Blob struct {
	Digest digest.Digest
	Size   int64          // bytes, as a manifest claims; -1: unknown. It is a hint: digest and source decide
	Stated bool           // Size is what the source itself has stated
	Origin storage.Origin // the repository under which it is fetched
	Source BlobSource
	Part   bool   // its client asks for parts of it only, so that the parts come first
	Client string // for whom the slots are that it needs; see slots.Slots
}

// key names the blob under its repository.
func (b *Blob) key() string { return b.Origin.Repository + "@" + string(b.Digest) }
