package hubtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Face is one of the three hosts that Docker Hub consists of.
type Face string

// The three faces.
const (
	Registry Face = "registry"
	Token    Face = "token"
	CDN      Face = "cdn"
)

var faces = []Face{Registry, Token, CDN}

// Unlimited, as a pull limit, means no limit and no ratelimit-* headers.
const Unlimited = -1

// Account is a user who may log in with a read-only personal access token.
type Account struct {
	Username string
	PAT      string
	Private  []string // private repositories that the account may read; "*" is all of them
	Limit    int      // manifest GETs in a window; 0 means Options.AccountLimit, Unlimited none
}

// reads reports whether a may read the private repository.
func (a Account) reads(repository string) bool {
	return slices.ContainsFunc(a.Private, func(glob string) bool { return globMatch(glob, repository) })
}

// Options says how a Hub behaves. The zero value is a Hub without accounts that has the
// anonymous and personal limits of Docker Hub and answers at once and as fast as it can.
// All fields but the addresses, names, TLS, Certificate and Seed may be changed later
// with [Hub.Set].
type Options struct {
	RegistryAddr, TokenAddr, CDNAddr string // listen addresses; "" is 127.0.0.1:0

	// Host names for the URLs that the Hub gives out, and for its certificate. "" is the
	// listen address once started, and registry.hub.test, auth.hub.test, cdn.hub.test before.
	RegistryName, TokenName, CDNName string

	TLS         bool             // serve https (HTTP/1.1 only); see [Network.CA]
	Certificate *tls.Certificate // nil: one made by an authority of the Hub's own

	Accounts       []Account
	AnonymousLimit int           // manifest GETs in a window for each address (IPv6: /64); 0 is 100
	AccountLimit   int           // manifest GETs in a window for each account; 0 is 200
	Window         time.Duration // of the pull limit; 0 is 6 h

	TokenLifetime time.Duration // 0 is 300 s (60 s with OmitExpiresIn, which is what its absence means)
	OmitExpiresIn bool          // leave expires_in out of token responses
	OpaqueTokens  bool          // tokens that are not JWTs
	OmitAccess    bool          // leave the access claim out where it would be empty
	Realm         string        // token realm of challenges; "" is /token at the token service

	URLLifetime time.Duration // of signed CDN URLs; 0 is 20 min
	HeadBlobOK  bool          // answer HEAD of a blob with 200 instead of 307
	InlineBlobs int64         // the registry itself sends blobs of up to this many bytes, with 200
	IgnoreRange bool          // the CDN answers every range with 200 and the whole blob
	NoReferrers bool          // answer requests for referrers with 404
	Gzip        bool          // compress manifests for clients whose Accept-Encoding names gzip

	Latency        time.Duration // before every response
	ConnLatency    time.Duration // before the first response on a connection, in addition to Latency
	FirstByte      time.Duration // between the headers and the first body byte of the CDN
	Bandwidth      int64         // body bytes a second on one CDN connection; 0 is no limit
	TotalBandwidth int64         // body bytes a second on all CDN connections together; 0 is no limit

	ClockSkew  time.Duration // how far the Hub's clock is ahead of ours
	Seed       uint64        // of synthetic layers and of Match.Chance
	LedgerPage bool          // GET /ledger on the registry shows the ledger, DELETE empties it
}

// addr is the listen address that the options give a face; it may be empty.
func (o Options) addr(face Face) string {
	switch face {
	case Registry:
		return o.RegistryAddr
	case Token:
		return o.TokenAddr
	default:
		return o.CDNAddr
	}
}

// name is the host name that the options give a face; it may be empty.
func (o Options) name(face Face) string {
	switch face {
	case Registry:
		return o.RegistryName
	case Token:
		return o.TokenName
	default:
		return o.CDNName
	}
}

func (o Options) account(username string) (Account, bool) {
	i := slices.IndexFunc(o.Accounts, func(a Account) bool { return a.Username == username })
	if i < 0 {
		return Account{}, false
	}
	return o.Accounts[i], true
}

// now is the time on the Hub's clock.
func (o Options) now() time.Time { return time.Now().Add(o.ClockSkew) }

// pullLimit is how many manifests the account ("" is anonymous) may GET in a window.
func (o Options) pullLimit(account string) int {
	if account == "" {
		return cmp.Or(o.AnonymousLimit, 100)
	}
	a, _ := o.account(account)
	return cmp.Or(a.Limit, o.AccountLimit, 200)
}

func (o Options) window() time.Duration { return cmp.Or(o.Window, 6*time.Hour) }

// settings holds the options in force.
type settings struct {
	mu   sync.Mutex // guards opts
	opts Options
}

func (s *settings) get() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opts
}

func (s *settings) set(change func(*Options)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Accounts = slices.Clone(s.opts.Accounts) // requests in progress read the old ones
	change(&s.opts)
}

// Hub is a Docker Hub for tests. Use [New] to make one; all methods may be called
// concurrently. Each part has a lock of its own, and no part holds its lock while it calls
// another.
type Hub struct {
	// Network is how clients reach the Hub: addresses, names and certificates.
	Network *Network

	settings *settings
	content  *content
	tokens   *tokenService
	quota    *quota
	faults   *faults
	ledger   *ledger

	stop   sync.Once
	closed chan struct{} // closed by Close
}

// New makes a Hub without opening a socket. Inside a testing/synctest bubble, call it in
// the bubble: a goroutine that waits on a channel from outside is not durably blocked.
func New(o Options) *Hub {
	h := &Hub{
		settings: &settings{opts: o},
		content:  newContent(),
		quota:    &quota{sources: map[source]*usage{}},
		faults:   newFaults(o.Seed),
		ledger:   &ledger{},
		closed:   make(chan struct{}),
	}
	signer := signer(rand.Text())
	h.tokens = &tokenService{signer: signer, content: h.content, ledger: h.ledger, tokens: map[string]grant{}}
	cdn := &cdn{signer: signer, content: h.content, ledger: h.ledger}
	d := &dispatcher{settings: h.settings, faults: h.faults, ledger: h.ledger, closed: h.closed}
	h.Network = newNetwork(h.settings, d.handler)
	d.network, cdn.network = h.Network, h.Network
	d.services = map[Face]service{
		Registry: &registry{content: h.content, tokens: h.tokens, quota: h.quota, cdn: cdn, network: h.Network, ledger: h.ledger},
		Token:    h.tokens,
		CDN:      cdn,
	}
	return h
}

// Start opens the three listeners. It fails when an address can't be listened on, or when
// the Hub has been started or closed before.
func (h *Hub) Start() error { return h.Network.start() }

// Close cuts every connection, releases every fault that hangs or stalls, and returns when
// no request is being served any more. It may be called more than once.
func (h *Hub) Close() {
	h.stop.Do(func() { close(h.closed) })
	h.Network.close()
	h.Wait(context.Background())
}

// Wait returns when no request is being served, or with the context's error. A client that
// has the last byte may look at the ledger without waiting; one that left early should wait.
func (h *Hub) Wait(ctx context.Context) error {
	for h.ledger.busy() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// Set changes the options while the Hub runs. Requests that are being answered keep the old
// ones. change must not call the Hub.
func (h *Hub) Set(change func(*Options)) { h.settings.set(change) }

// RegistryURL is the base URL of the registry, without a slash at the end.
// [Network.URL] has those of the other faces.
func (h *Hub) RegistryURL() string { return h.Network.URL(Registry) }

// Transport reaches the three faces without a socket: see [Network.TransportFrom]. Its
// client has the address 192.0.2.1.
func (h *Hub) Transport() *http.Transport { return h.Network.TransportFrom("192.0.2.1") }

// AddHost makes Transport reach a handler under one more host name or IP address: a place
// outside the Hub that a redirect or a token realm leads to. The ledger does not list its
// requests, and faults don't apply to them. Listeners and [Network.DialContext] don't know it.
func (h *Hub) AddHost(host string, handler http.Handler) { h.Network.addHost(host, handler) }

// SetPrivate makes a repository private (or public again), and creates it when there is none.
// Only accounts that name it may read it. Repositories are public to begin with.
func (h *Hub) SetPrivate(repository string, private bool) { h.content.setPrivate(repository, private) }

// AddImage makes an image and points the tag at it. Without a tag it is reachable by digest
// only.
func (h *Hub) AddImage(repository, tag string, spec ImageSpec) *Image {
	b := builder{content: h.content, seed: h.settings.get().Seed, spec: spec, repository: repository, tag: tag}
	return b.image()
}

// AddManifest puts any bytes as a manifest of any media type into a repository. Without a
// tag it is reachable by digest only.
func (h *Hub) AddManifest(repository, tag, mediaType string, b []byte) ocispec.Descriptor {
	return h.content.addManifest(repository, tag, mediaType, b, digest.SHA256)
}

// AddBlob puts a blob into a repository.
func (h *Hub) AddBlob(repository, mediaType string, b []byte) ocispec.Descriptor {
	return h.content.addBlob(repository, mediaType, digest.FromBytes(b), Bytes(b), int64(len(b)))
}

// AddBlobAt puts a blob into a repository that is read from r whenever it is requested. It
// has the digest given, which may be wrong. Where r fails, the connection is closed.
func (h *Hub) AddBlobAt(repository, mediaType string, d digest.Digest, r io.ReaderAt, size int64) ocispec.Descriptor {
	return h.content.addBlob(repository, mediaType, d, r, size)
}

// LinkBlob makes a blob of another repository readable under this one, as a mount does.
func (h *Hub) LinkBlob(repository string, d digest.Digest) { h.content.linkBlob(repository, d) }

// Blob returns the bytes of a blob for comparison, or nil when there is none.
func (h *Hub) Blob(d digest.Digest) *io.SectionReader {
	b := h.content.blob(d)
	if b == nil {
		return nil
	}
	return io.NewSectionReader(b, 0, b.Size())
}

// Tag moves a tag, or creates it. The digest need not exist.
func (h *Hub) Tag(repository, tag string, d digest.Digest) { h.content.tag(repository, tag, d) }

// Untag deletes a tag. The manifest stays reachable by digest. Given a digest instead of a
// tag, Untag deletes that manifest, and requests for tags that name it are answered with 404.
func (h *Hub) Untag(repository, reference string) { h.content.untag(repository, reference) }

// Inject makes the faults happen to the requests that match. Where several rules match a
// request, the one that was injected first fires; a rule that has fired its Times is passed
// over.
//
// The faults of one rule happen in this order, however they are given: Delay, then Hang; then
// the first of Reset or Drop, Raw or HAP429, and Status or another fault that is a response;
// where there is none of these, the real service responds. So with these faults no quota is
// spent. The faults of the headers and the body apply to the responses of Status and of the
// real service, IgnoreRange and ExpiredURL only to the latter. Of two faults of the same kind,
// the last one counts.
func (h *Hub) Inject(m Match, faults ...Fault) *Rule { return h.faults.inject(m, faults) }

// ClearFaults removes and releases all rules.
func (h *Hub) ClearFaults() { h.faults.clear() }

// Ledger returns a copy of all requests since the start or the last [Hub.ResetLedger]. A
// request is complete in it before its client has the last byte.
func (h *Hub) Ledger() Ledger { return h.ledger.snapshot() }

// ResetLedger forgets all requests, also those that are still being answered.
func (h *Hub) ResetLedger() { h.ledger.reset() }

// Violations describes each request that no well-behaved client makes: one that sent
// Authorization to the CDN, or a password to the registry. ResetLedger keeps them.
func (h *Hub) Violations() []string { return h.ledger.allViolations() }

// Secrets returns the tokens and the signatures of CDN URLs given out so far, which a client
// must not write into a log. ResetLedger keeps them.
func (h *Hub) Secrets() []string { return h.ledger.allSecrets() }

// SetUsed sets how many pulls of its current window an account has used; "" is every
// anonymous address, also those that have made no request yet. At the limit and above it,
// requests for manifests are answered with 429 until the window ends.
func (h *Hub) SetUsed(account string, n int) { h.quota.setUsed(h.settings.get(), account, n) }

// Used returns how many pulls the account has used in its current window; "" is all
// anonymous addresses together.
func (h *Hub) Used(account string) int { return h.quota.usedBy(h.settings.get(), account) }

// RevokeTokens makes every token given out so far unknown to the registry.
func (h *Hub) RevokeTokens() { h.tokens.revoke() }

// quietLog discards what net/http logs about its clients, and passes panics on.
type quietLog struct{}

func (quietLog) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("panic")) {
		return os.Stderr.Write(p)
	}
	return len(p), nil
}

func newQuietLog() *log.Logger { return log.New(quietLog{}, "", 0) }
