package hubtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Face is one of the hosts that Docker Hub consists of.
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

// Account is somebody who may log in with a read-only personal access token.
type Account struct {
	Username string
	PAT      string
	Private  []string // private repositories that the account may read; "*" is all of them
	Limit    int      // manifest GETs a window; 0 means Options.AccountLimit, Unlimited none
}

// Options says how a Hub behaves. The zero value is a Hub without accounts that has the
// anonymous and personal limits of Docker Hub, answers at once and as fast as it can.
// All fields but the addresses, names, TLS, Certificate and Seed may be changed later
// with [Hub.Set].
type Options struct {
	RegistryAddr, TokenAddr, CDNAddr string // listen addresses; "" is 127.0.0.1:0

	// Host names for the URLs that the Hub gives out, and for its certificate. "" is the
	// listen address once started, and registry.hub.test, auth.hub.test, cdn.hub.test before.
	RegistryName, TokenName, CDNName string

	TLS         bool             // serve https (HTTP/1.1 only); see [Hub.CA]
	Certificate *tls.Certificate // nil: one made by an authority of the Hub's own

	Accounts       []Account
	AnonymousLimit int           // manifest GETs a window and address (IPv6: /64); 0 is 100
	AccountLimit   int           // manifest GETs a window and account; 0 is 200
	Window         time.Duration // of the pull limit; 0 is 6 h

	TokenLifetime time.Duration // 0 is 300 s (60 s with OmitExpiresIn, what its absence means)
	OmitExpiresIn bool          // leave expires_in out of token replies
	OpaqueTokens  bool          // tokens that are not JWTs
	OmitAccess    bool          // leave the access claim out where it would be empty
	Realm         string        // token realm of challenges; "" is TokenURL()+"/token"

	URLLifetime time.Duration // of signed CDN URLs; 0 is 20 min
	HeadBlobOK  bool          // answer HEAD of a blob with 200 instead of 307
	InlineBlobs int64         // blobs of up to so many bytes come as 200 from the registry itself
	IgnoreRange bool          // the CDN answers every range with 200 and everything
	NoReferrers bool          // answer referrers with 404
	Gzip        bool          // compress manifests for those whose Accept-Encoding names gzip

	Latency        time.Duration // before every answer
	ConnLatency    time.Duration // before the first answer on a connection, on top of Latency
	FirstByte      time.Duration // between the headers and the first body byte of the CDN
	Bandwidth      int64         // body bytes a second on one CDN connection; 0 is no cap
	TotalBandwidth int64         // body bytes a second on all CDN connections together; 0 is no cap

	ClockSkew  time.Duration // how far the Hub's clock is ahead of ours
	Seed       uint64        // of synthetic layers and of Match.Chance
	LedgerPage bool          // GET /ledger on the registry shows the ledger, DELETE empties it
}

// Hub is a Docker Hub of its own. Use [New] to make one; all methods may be called
// concurrently.
type Hub struct {
	key     []byte // signs CDN URLs and JWTs
	closed  chan struct{}
	servers map[Face]*http.Server
	total   pacer // Options.TotalBandwidth
	ledger  ledger
	ca      *authority // nil without TLS

	mu         sync.Mutex // guards all below
	opts       Options
	listeners  map[Face]net.Listener
	hosts      map[string]*http.Server // of AddHost
	isClosed   bool
	content    content
	tokens     map[string]grant
	quota      map[string]*usage
	anonSpent  int // what a new anonymous address has used already
	rules      []*Rule
	rand       *mathrand.Rand
	violations []string
	secrets    []string
	serving    sync.WaitGroup
}

// New makes a Hub without opening a socket. Inside a testing/synctest bubble, call it in
// the bubble: what waits on a Hub from outside is not durably blocked.
func New(o Options) *Hub {
	h := &Hub{
		key:     []byte(rand.Text()),
		closed:  make(chan struct{}),
		servers: map[Face]*http.Server{},
		hosts:   map[string]*http.Server{},
		opts:    o,
		content: newContent(),
		tokens:  map[string]grant{},
		quota:   map[string]*usage{},
		rand:    mathrand.New(mathrand.NewPCG(o.Seed, 0)),
	}
	if o.TLS && o.Certificate == nil {
		h.ca = newAuthority(hostNames(o))
	}
	for _, face := range faces {
		h.servers[face] = &http.Server{
			Handler:      http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.serve(face, w, r) }),
			ConnContext:  withConn,
			TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1, as registry-1
			ErrorLog:     log.New(quiet{}, "", 0),
		}
	}
	return h
}

// quiet swallows what net/http has to say about its clients, but not our own panics.
type quiet struct{}

func (quiet) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("panic")) {
		return os.Stderr.Write(p)
	}
	return len(p), nil
}

// Start opens the three listeners. It fails when an address can't be listened on, or the
// Hub has been started or closed before.
func (h *Hub) Start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isClosed || h.listeners != nil {
		return errors.New("hubtest: started or closed already")
	}
	listeners := map[Face]net.Listener{}
	for _, face := range faces {
		l, err := net.Listen("tcp", cmp.Or(h.opts.addr(face), "127.0.0.1:0"))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return fmt.Errorf("hubtest: %s: %w", face, err)
		}
		listeners[face] = l
	}
	h.listeners = listeners
	for face, l := range listeners {
		if h.opts.TLS {
			l = tls.NewListener(l, h.tlsConfig())
		}
		h.serving.Go(func() { h.servers[face].Serve(l) })
	}
	return nil
}

// Close cuts every connection, releases every fault that hangs or stalls, and returns when
// no request is being served any more. It is safe to call twice.
func (h *Hub) Close() {
	h.mu.Lock()
	first := !h.isClosed
	h.isClosed = true
	h.mu.Unlock()
	if first {
		close(h.closed)
	}
	h.mu.Lock()
	servers := slices.AppendSeq(slices.Collect(maps.Values(h.servers)), maps.Values(h.hosts))
	h.mu.Unlock()
	for _, s := range servers {
		s.Close()
	}
	h.serving.Wait()
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

// Set changes the options while the Hub runs. Requests that are being answered keep theirs.
// change must not call the Hub.
func (h *Hub) Set(change func(*Options)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opts.Accounts = slices.Clone(h.opts.Accounts) // requests under way read the old ones
	change(&h.opts)
}

func (h *Hub) options() Options {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opts
}

// RegistryURL, TokenURL and CDNURL are the bases of the three faces, without a slash at
// the end.
func (h *Hub) RegistryURL() string { return h.url(Registry) }

// TokenURL is the base of the token service; tokens come from TokenURL()+"/token".
func (h *Hub) TokenURL() string { return h.url(Token) }

// CDNURL is the base of the signed URLs.
func (h *Hub) CDNURL() string { return h.url(CDN) }

func (h *Hub) url(face Face) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	scheme, port := "http://", "80"
	if h.opts.TLS {
		scheme, port = "https://", "443"
	}
	l := h.listeners[face]
	name := h.opts.name(face)
	if l == nil {
		return scheme + cmp.Or(name, defaultNames[face])
	}
	if name == "" {
		return scheme + l.Addr().String()
	}
	_, p, _ := net.SplitHostPort(l.Addr().String())
	if p == port {
		return scheme + name
	}
	return scheme + net.JoinHostPort(name, p)
}

var defaultNames = map[Face]string{Registry: "registry.hub.test", Token: "auth.hub.test", CDN: "cdn.hub.test"}

func (o Options) addr(face Face) string {
	return map[Face]string{Registry: o.RegistryAddr, Token: o.TokenAddr, CDN: o.CDNAddr}[face]
}

func (o Options) name(face Face) string {
	return map[Face]string{Registry: o.RegistryName, Token: o.TokenName, CDN: o.CDNName}[face]
}

func (o Options) account(username string) (Account, bool) {
	i := slices.IndexFunc(o.Accounts, func(a Account) bool { return a.Username == username })
	if i < 0 {
		return Account{}, false
	}
	return o.Accounts[i], true
}

// reads reports whether a may read the private repository.
func (a Account) reads(repository string) bool {
	return slices.ContainsFunc(a.Private, func(glob string) bool { return matches(glob, repository) })
}

// now is the time on the Hub's clock.
func (o Options) now() time.Time { return time.Now().Add(o.ClockSkew) }

// Violations tells of each request that no well-behaved client makes: one that brought
// Authorization to the CDN, or a password to the registry.
func (h *Hub) Violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.violations)
}

func (h *Hub) violation(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.violations = append(h.violations, fmt.Sprintf(format, args...))
}

// Secrets are the tokens and the signatures of CDN URLs given out so far: what a client has
// to keep to itself.
func (h *Hub) Secrets() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.secrets)
}

// matches reports whether s matches the glob, in which * is any run of characters.
// The empty glob matches everything.
func matches(glob, s string) bool {
	if glob == "" {
		return true
	}
	parts := strings.Split(glob, "*")
	if len(parts) == 1 {
		return glob == s
	}
	rest, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, last)
}
