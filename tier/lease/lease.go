// Package lease lets several nodes agree which of them fetches a blob, by a key in Redis or Valkey, and
// tell each other what they have just learnt.
//
// A lease is no lock: who has lost it, or can't reach Redis, may go on, and the blob is then
// fetched twice. It only spares that while all is well.
package lease

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// answerIn is how long Redis may take for each call, with the connection to it: a client waits
// meanwhile.
const answerIn = 500 * time.Millisecond

// keys begin with it. The number is the version of the values.
const keys = "hubcache:1:"

// whole begins all scripts. A Redis that is full, or a replica, refuses such a script as a whole, also one
// that reads: it isn't well for one call and unwell for the next.
const whole = "#!lua"

// The library logs by a logger of the whole process. What it has to say comes back as errors.
func init() { logging.Disable() }

// Config says which server. Addr must be set.
type Config struct {
	Addr         string // host:port
	Username     string // empty: the default user
	PasswordFile string // read for each connection; empty: no password
	TLS          bool
	CAFile       string // PEM; trusted beside those of the system; it needs TLS

	// Group keeps those who share a server apart: nodes with another bucket have other leases.
	Group string
}

// Redis has the leases and the notes. All methods are safe for concurrent use. None tries again what has failed.
type Redis struct {
	client        *redis.Client
	prefix, notes string // of the keys of leases and of notes
	uses          string // key of the last uses
}

// New returns a Redis. It makes no request.
// Errors: a setting that makes no sense, a CA file that can't be read.
func New(c Config) (*Redis, error) {
	if host, port, err := net.SplitHostPort(c.Addr); err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("the address of Redis must be host:port, not %q", c.Addr)
	}
	o := &redis.Options{
		Addr: c.Addr, Protocol: 2, MaxRetries: -1, DialerRetries: 1,
		DialTimeout: answerIn, ReadTimeout: answerIn, WriteTimeout: answerIn, PoolTimeout: answerIn, ContextTimeoutEnabled: true,
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		CredentialsProviderContext: func(context.Context) (string, string, error) { return credentials(c) },
	}
	var err error
	if o.TLSConfig, err = tlsConfig(c); err != nil {
		return nil, err
	}
	return &Redis{client: redis.NewClient(o), prefix: keys + c.Group + ":lease:", notes: keys + c.Group + ":note:", uses: keys + c.Group + ":uses"}, nil
}

// credentials reads the password.
func credentials(c Config) (username, password string, err error) {
	if c.PasswordFile == "" {
		return c.Username, "", nil
	}
	b, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", "", fmt.Errorf("the password of Redis can't be read: %w", err)
	}
	password = strings.TrimSpace(string(b))
	if password == "" {
		return "", "", fmt.Errorf("the password of Redis is missing: %s is empty", c.PasswordFile)
	}
	return c.Username, password, nil
}

// tlsConfig returns nil for a connection without TLS.
func tlsConfig(c Config) (*tls.Config, error) {
	if !c.TLS {
		if c.CAFile != "" {
			return nil, errors.New("a CA of Redis without tls makes no sense")
		}
		return nil, nil
	}
	host, _, _ := net.SplitHostPort(c.Addr)
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if c.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("the CA of Redis: %w", err)
	}
	if t.RootCAs, err = x509.SystemCertPool(); err != nil {
		t.RootCAs = x509.NewCertPool()
	}
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA of Redis: %s has no certificate in PEM", c.CAFile)
	}
	return t, nil
}

// Close closes the connections.
func (r *Redis) Close() error { return r.client.Close() }

// Lease says who fetches something.
type Lease struct {
	Holder string // the URL by which the other nodes reach it
	Token  string // secret: who presents it to the holder is a node of the same group
}

// Of returns a lease of a holder with a new token.
func Of(holder string) Lease { return Lease{Holder: holder, Token: rand.Text()} }

// String keeps the token out of logs.
func (l Lease) String() string { return l.Holder }

func (l Lease) value() string { return l.Token + " " + l.Holder }

func parse(value string) (l Lease, err error) {
	token, holder, ok := strings.Cut(value, " ")
	if !ok || token == "" || holder == "" {
		return l, errors.New("redis: a lease has a value that this program doesn't know")
	}
	return Lease{Holder: holder, Token: token}, nil
}

// Take takes the lease of a key for ttl, and returns mine. If somebody has it already it
// changes nothing, and returns whose it is.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Take(ctx context.Context, key string, mine Lease, ttl time.Duration) (Lease, error) {
	var value string
	err := r.call(ctx, func(ctx context.Context) (err error) {
		value, err = r.client.SetArgs(ctx, r.prefix+key, mine.value(), redis.SetArgs{Mode: "NX", Get: true, TTL: ttl}).Result()
		if errors.Is(err, redis.Nil) { // there was none
			value, err = mine.value(), nil
		}
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return parse(value)
}

// replace sets KEYS[1] from ARGV[1], or from nothing, to ARGV[2] for ARGV[3] ms, and returns what it is then.
var replace = redis.NewScript(whole + `
local v = redis.call('GET', KEYS[1])
if v and v ~= ARGV[1] then return v end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return ARGV[2]`)

// Replace is Take by somebody who has found that the holder of the lease dead is gone. Of several
// who find that at the same time, one gets it, and the others get his.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Replace(ctx context.Context, key string, dead, mine Lease, ttl time.Duration) (Lease, error) {
	var value string
	err := r.call(ctx, func(ctx context.Context) (err error) {
		value, err = replace.Run(ctx, r.client, []string{r.prefix + key}, dead.value(), mine.value(), ttl.Milliseconds()).Text()
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return parse(value)
}

// extend and release change KEYS[1] while it is ARGV[1].
var (
	extend = redis.NewScript(whole + `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

	release = redis.NewScript(whole + `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)
)

// Extend makes the lease last for ttl from now. ok is false when it is no longer mine.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Extend(ctx context.Context, key string, mine Lease, ttl time.Duration) (ok bool, err error) {
	err = r.call(ctx, func(ctx context.Context) (err error) {
		ok, err = extend.Run(ctx, r.client, []string{r.prefix + key}, mine.value(), ttl.Milliseconds()).Bool()
		return err
	})
	return ok, err
}

// Release gives the lease back. One that is no longer mine stays as it is.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Release(ctx context.Context, key string, mine Lease) error {
	return r.call(ctx, func(ctx context.Context) error {
		return release.Run(ctx, r.client, []string{r.prefix + key}, mine.value()).Err()
	})
}

var errSlow = errors.New("it doesn't answer in time")

// call makes the requests of f, with the deadline.
func (r *Redis) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerIn, errSlow)
	defer cancel()
	err := f(ctx)
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("redis: %w", err)
}
