// Package bucket reads and writes objects in an S3-compatible bucket. It knows nothing of what
// the objects mean: that is package tier.
//
// Every call has a deadline of its own beside that of its context, so that a bucket that is slow
// or gone costs its caller a known time. No call retries: whoever calls knows better whether
// there is another place to get the bytes from.
package bucket

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// Errors of a Bucket. All others say that the bucket is unwell.
var (
	// ErrAbsent: there is no such object.
	ErrAbsent = errors.New("no such object in the bucket")

	// ErrRange: the object ends before the part begins that was asked for.
	ErrRange = errors.New("the object in the bucket is too short")

	// ErrStalled: no byte has moved for too long.
	ErrStalled = errors.New("the bucket has moved no byte for too long")

	errSlow = errors.New("the bucket doesn't answer in time")
)

// patience is how long a Bucket waits. Tests have less.
type patience struct {
	answer time.Duration // see Config.Answer

	// read is how long a body may bring no byte before the rest comes from elsewhere.
	read time.Duration

	// write and complete are the same for what is written; nobody waits for that. The answer to
	// a completed upload may take long: the server puts the parts together.
	write, complete time.Duration
}

var usual = patience{answer: time.Second, read: 3 * time.Second, write: 30 * time.Second, complete: 2 * time.Minute}

// Config says which bucket. Endpoint and Name must be set.
type Config struct {
	Endpoint string // URL, as https://s3.example.com; http is possible
	Name     string // of the bucket
	Prefix   string // before the names of all objects; may be empty
	Region   string // empty: asked for when the first request is made

	// Both or none. Without them the standard chain is used: the environment (AWS_ACCESS_KEY_ID,
	// AWS_SECRET_ACCESS_KEY), ~/.aws/credentials, web identity, container and instance metadata.
	// The files are read again once a minute.
	AccessKeyFile, SecretKeyFile string

	// Answer is how long the headers of an answer to a reader may take; 0: a second. A client waits
	// meanwhile, and the upstream must still have its time.
	Answer time.Duration

	Part int64 // bytes of the parts that larger objects are sent in; S3 wants 5 MiB at least; 0: 16 MiB

	PathStyle bool   // https://host/bucket/name; otherwise the library decides by the host
	CAFile    string // PEM; trusted beside those of the system
}

// Bucket is a bucket with a prefix. All methods are safe for concurrent use. Names of objects are
// relative to the prefix.
type Bucket struct {
	core   minio.Core
	name   string
	prefix string
	waits  patience
	part   int64 // bytes; parts are multiples of it
}

// New returns a Bucket. It makes no request.
// Errors: a setting that makes no sense, a CA file that can't be read.
func New(c Config) (*Bucket, error) {
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "":
		return nil, fmt.Errorf("the bucket's endpoint must be a URL like https://s3.example.com, not %q", redacted(c.Endpoint))
	case c.Name == "":
		return nil, errors.New("the bucket has no name")
	case (c.AccessKeyFile == "") != (c.SecretKeyFile == ""):
		return nil, errors.New("the bucket needs both access_key_file and secret_key_file, or none of them")
	}
	transport, err := newTransport(c.CAFile)
	if err != nil {
		return nil, err
	}
	o := &minio.Options{Creds: newCredentials(c), Secure: u.Scheme == "https", Transport: transport, Region: c.Region, MaxRetries: 1}
	if c.PathStyle {
		o.BucketLookup = minio.BucketLookupPath
	}
	core, err := minio.NewCore(u.Host, o)
	if err != nil {
		return nil, fmt.Errorf("the bucket's endpoint: %w", err)
	}
	core.SetAppInfo("hubcache", "1")
	waits := usual
	waits.answer = cmp.Or(c.Answer, waits.answer)
	return &Bucket{core: *core, name: c.Name, prefix: strings.Trim(path.Clean("/"+c.Prefix), "/"), waits: waits, part: cmp.Or(c.Part, 16<<20)}, nil
}

// redacted returns an endpoint without what may be a password in it.
func redacted(endpoint string) string {
	if _, after, ok := strings.Cut(endpoint, "@"); ok {
		return "…@" + after
	}
	return endpoint
}

// newTransport returns the transport of all requests to the bucket.
func newTransport(caFile string) (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 32
	t.DisableCompression = true // the bytes of an object are what is asked for
	t.ForceAttemptHTTP2 = false // several ranges share one connection otherwise
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("the CA of the bucket: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA of the bucket: %s has no certificate in PEM", caFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// Object is what a bucket knows of an object beside its name.
type Object struct {
	Size      int64  // bytes
	MediaType string // may be empty
	Private   bool   // it came through a private repository
}

// privateKey is the key of Private in the metadata of an object.
const privateKey = "Hubcache-Private"

// full returns the whole name of an object.
func (b *Bucket) full(name string) string { return path.Join(b.prefix, name) }

// Name returns the name of the bucket and the prefix, for messages.
func (b *Bucket) Name() string { return path.Join(b.name, b.prefix) }

// classify makes ErrAbsent of an answer that says so. A missing bucket isn't that: then nothing
// can be said of the object.
func classify(ctx context.Context, doing, name string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	r := minio.ToErrorResponse(err)
	switch {
	case r.Code == minio.NoSuchKey:
		err = ErrAbsent
	case r.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		err = ErrRange
	case r.StatusCode != 0:
		err = fmt.Errorf("%d %s %s", r.StatusCode, cmp.Or(r.Code, http.StatusText(r.StatusCode)), r.Message)
	}
	return fmt.Errorf("bucket: %s %s: %w", doing, name, err)
}
