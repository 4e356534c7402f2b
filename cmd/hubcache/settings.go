package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/prune"
	"github.com/hubcache/hubcache/registry"
)

// settings are all settings, in the shape of the file. Sources, in order: flag,
// environment, file, default. No secret is among them: only the name of a file with one.
type settings struct {
	Listen      list // host:port or unix:/path
	ListenAllow list // CIDRs of clients; empty: everyone
	TLS         struct {
		CertFile text
		KeyFile  text
	}
	Admin struct {
		Listen list
		Hosts  list // further Host names that requests may carry
	}
	DataDir  text
	Budget   size
	MinFree  onlyBytes
	Upstream struct {
		URL          text
		Username     text
		PasswordFile text
		CAFile       text
		Private      list
	}
	Tags struct {
		TTL         maybeSpan
		MaxStale    span
		NegativeTTL span
		OnGone      choice
		Rules       tagRules
	}
	Allow list
	Deny  list
	Quota struct {
		Reserve share
	}
	Limits struct {
		Transfers count
		Orphans   count
		Ranges    count
		Bypass    count
	}
	ReadAhead truth
	Docker    struct {
		Host    text
		Admin   text
		HoldDir text
		State   text
		Prune   struct {
			High      share
			Low       share
			Critical  share
			MinAge    span
			Quiet     span
			Tagged    truth
			Keep      list
			KeepFiles list
			MaxWait   span
		}
	}
	Log struct {
		Level  choice
		Format choice
	}
}

// tagRule is one of tags.rules.
type tagRule struct {
	Match    text
	TTL      maybeSpan
	MaxStale maybeSpan
	Refresh  truth
}

// tagRules are tags.rules, which only the file can hold.
type tagRules []tagRule

func (r *tagRules) Set(string) error { return errors.New("can be set in the file only") }

// String is the list as the file may have it.
func (r *tagRules) String() string {
	rules := []map[string]string{}
	for _, rule := range *r {
		m := map[string]string{}
		for _, row := range rule.table("") {
			if v := row.value.String(); v != "" && v != "false" {
				m[row.key] = v
			}
		}
		rules = append(rules, m)
	}
	b, _ := json.Marshal(rules) // strings: it can't fail
	return string(b)
}

// table names the settings of one rule.
func (r *tagRule) table(prefix string) []setting {
	return []setting{
		{key: prefix + "match", value: &r.Match},
		{key: prefix + "ttl", value: &r.TTL},
		{key: prefix + "max_stale", value: &r.MaxStale},
		{key: prefix + "refresh", value: &r.Refresh},
	}
}

// setting is one row of the table of settings.
type setting struct {
	key   string // in the file
	flag  string // of serve; "" when there is none
	env   string // "" when there is none
	value value
	help  string
}

// defaults returns the settings before anybody has set one.
func defaults() *settings {
	s := &settings{}
	s.Listen = list{"127.0.0.1:5000"}
	s.Admin.Listen = list{"127.0.0.1:5001"}
	s.DataDir = text(defaultDataDir())
	s.Budget.Set("20GiB")
	s.MinFree.Set("1GiB")
	s.Upstream.URL = "https://registry-1.docker.io"
	s.Tags.MaxStale = span(168 * time.Hour)
	s.Tags.NegativeTTL = span(10 * time.Second)
	s.Tags.OnGone = choice{"gone", []string{"gone", "keep"}}
	s.Quota.Reserve = 0.10
	l := fetch.DefaultLimits()
	s.Limits.Transfers, s.Limits.Orphans, s.Limits.Ranges, s.Limits.Bypass = count(l.Transfers), count(l.Orphans), count(l.Ranges), count(l.Bypass)
	s.ReadAhead = true
	s.Docker.Host = "unix:///var/run/docker.sock"
	s.Docker.HoldDir = "/run/hubcache/hold"
	s.Docker.State = "/var/lib/hubcache-docker/uses.db"
	p, d := prune.DefaultPolicy(), &s.Docker.Prune
	d.High, d.Low, d.Critical = share(p.High), share(p.Low), share(p.Critical)
	d.MinAge, d.Quiet, d.MaxWait, d.Tagged = span(p.MinAge), span(p.Quiet), span(p.MaxWait), truth(p.Tagged)
	s.Log.Level = choice{"info", []string{"debug", "info", "warn", "error"}}
	s.Log.Format = choice{"", []string{"", "text", "json"}}
	return s
}

// defaultDataDir is the system's for root and for a service, else the user's own cache.
func defaultDataDir() string {
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/lib/hubcache"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "hubcache")
	}
	return "/var/lib/hubcache"
}

// table names every setting.
func (s *settings) table() []setting {
	d := &s.Docker
	return []setting{
		{"listen", "listen", "HUBCACHE_LISTEN", &s.Listen, "`address` of the pull API: host:port or unix:/path (repeatable)"},
		{"listen_allow", "listen-allow", "HUBCACHE_LISTEN_ALLOW", &s.ListenAllow, "`network` of clients that may connect, like 10.0.0.0/8 (repeatable) (default everyone; unix sockets always)"},
		{"tls.cert_file", "tls-cert-file", "HUBCACHE_TLS_CERT_FILE", &s.TLS.CertFile, "serve https with the certificate chain in this `file`"},
		{"tls.key_file", "tls-key-file", "HUBCACHE_TLS_KEY_FILE", &s.TLS.KeyFile, "`file` with the certificate's key"},
		{"admin.listen", "admin-listen", "HUBCACHE_ADMIN_LISTEN", &s.Admin.Listen, "`address` of stats, metrics and health: host:port or unix:/path (repeatable)"},
		{"admin.hosts", "", "", &s.Admin.Hosts, ""},
		{"data_dir", "data-dir", "HUBCACHE_DATA_DIR", &s.DataDir, "`folder` of the cache (default /var/lib/hubcache as a service or root, else $XDG_CACHE_HOME/hubcache)"},
		{"budget", "budget", "HUBCACHE_BUDGET", &s.Budget, "bytes that the cache may hold, like 50GiB, or 30% of its file system"},
		{"min_free", "min-free", "HUBCACHE_MIN_FREE", &s.MinFree, "free space below which the cache evicts whatever its budget"},
		{"upstream.url", "upstream", "HUBCACHE_UPSTREAM", &s.Upstream.URL, "`URL` of the registry that is cached"},
		{"upstream.username", "username", "HUBCACHE_USERNAME", &s.Upstream.Username, "Docker ID or organisation, the `name` that the access token belongs to (default anonymous)"},
		{"upstream.password_file", "password-file", "HUBCACHE_PASSWORD_FILE", &s.Upstream.PasswordFile, "`file` with the access token; a relative name is looked up in $CREDENTIALS_DIRECTORY"},
		{"upstream.ca_file", "upstream-ca-file", "HUBCACHE_UPSTREAM_CA_FILE", &s.Upstream.CAFile, "`file` with the certificates to trust upstream instead of the system's"},
		{"upstream.private", "private", "HUBCACHE_PRIVATE", &s.Upstream.Private, "`pattern` of private repositories that everybody here may pull (repeatable)"},
		{"tags.ttl", "tag-ttl", "HUBCACHE_TAG_TTL", &s.Tags.TTL, "how long a tag is answered without asking; 0 asks on every pull (default 60s for library/*, else 0)"},
		{"tags.max_stale", "tag-max-stale", "HUBCACHE_TAG_MAX_STALE", &s.Tags.MaxStale, "how long a tag is served while upstream fails"},
		{"tags.negative_ttl", "", "", &s.Tags.NegativeTTL, ""},
		{"tags.on_gone", "", "", &s.Tags.OnGone, ""},
		{"tags.rules", "", "", &s.Tags.Rules, ""},
		{"allow", "", "", &s.Allow, ""},
		{"deny", "", "", &s.Deny, ""},
		{"quota.reserve", "", "", &s.Quota.Reserve, ""},
		{"limits.transfers", "", "", &s.Limits.Transfers, ""},
		{"limits.orphans", "", "", &s.Limits.Orphans, ""},
		{"limits.ranges", "", "", &s.Limits.Ranges, ""},
		{"limits.bypass", "", "", &s.Limits.Bypass, ""},
		{"read_ahead", "", "", &s.ReadAhead, ""},
		{"docker.host", "", "", &d.Host, ""},
		{"docker.admin", "", "", &d.Admin, ""},
		{"docker.hold_dir", "", "", &d.HoldDir, ""},
		{"docker.state", "", "", &d.State, ""},
		{"docker.prune.high_watermark", "", "", &d.Prune.High, ""},
		{"docker.prune.low_watermark", "", "", &d.Prune.Low, ""},
		{"docker.prune.critical_watermark", "", "", &d.Prune.Critical, ""},
		{"docker.prune.min_age", "", "", &d.Prune.MinAge, ""},
		{"docker.prune.quiet", "", "", &d.Prune.Quiet, ""},
		{"docker.prune.tagged", "", "", &d.Prune.Tagged, ""},
		{"docker.prune.keep", "", "", &d.Prune.Keep, ""},
		{"docker.prune.keep_files", "", "", &d.Prune.KeepFiles, ""},
		{"docker.prune.max_wait", "", "", &d.Prune.MaxWait, ""},
		{"log.level", "log-level", "HUBCACHE_LOG_LEVEL", &s.Log.Level, "`level`: debug, info, warn or error"},
		{"log.format", "log-format", "HUBCACHE_LOG_FORMAT", &s.Log.Format, "`format`: text or json (default text on a terminal, else json)"},
	}
}

// check finds what can't work, without looking at files: they may not be on the machine
// that checks.
func (s *settings) check() error {
	if len(s.Listen) == 0 {
		return fmt.Errorf("listen: at least one address is needed")
	}
	for _, addr := range s.Listen {
		if err := checkAddress(addr); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	for _, addr := range s.Admin.Listen {
		if err := checkAddress(addr); err != nil {
			return fmt.Errorf("admin.listen: %w", err)
		}
	}
	if _, err := s.allowed(); err != nil {
		return err
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		return fmt.Errorf("tls.cert_file and tls.key_file belong together")
	}
	if u := s.Upstream; u.Username == "" && u.PasswordFile != "" {
		return fmt.Errorf("upstream.password_file is set, and upstream.username is not")
	} else if u.Username != "" && u.PasswordFile == "" {
		return fmt.Errorf("upstream.username is set, and upstream.password_file is not")
	}
	if err := checkUpstream(string(s.Upstream.URL)); err != nil {
		return fmt.Errorf("upstream.url: %w", err)
	}
	if s.DataDir == "" {
		return fmt.Errorf("data_dir: a folder is needed")
	}
	if s.Budget.share == 0 && s.Budget.bytes <= 0 {
		return fmt.Errorf("budget: more than nothing is needed")
	}
	if err := registry.CheckPolicy(s.policy()); err != nil {
		return err
	}
	if err := s.prunePolicy().Validate(); err != nil {
		return fmt.Errorf("docker.prune: %w", err)
	}
	return nil
}

// checkUpstream never repeats the URL: there may be a password in it.
func checkUpstream(s string) error {
	u, err := url.Parse(s)
	switch {
	case strings.Contains(s, "@"):
		return errors.New("credentials don't belong in a URL: set upstream.username and upstream.password_file")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("is not an http or https URL like https://registry-1.docker.io")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("is a scheme and a host, like https://registry-1.docker.io, without a path")
	}
	return nil
}

func checkAddress(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q: a unix socket needs an absolute path", addr)
		}
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not an address like 127.0.0.1:5000, [::1]:5000 or unix:/run/hubcache.sock", addr)
	}
	return nil
}

// allowed are the clients of listen_allow.
func (s *settings) allowed() (nets []netip.Prefix, err error) {
	for _, cidr := range s.ListenAllow {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			a, aerr := netip.ParseAddr(cidr)
			if aerr != nil {
				return nil, fmt.Errorf("listen_allow: %q is neither an address nor a network like 10.0.0.0/8", cidr)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		nets = append(nets, p.Masked())
	}
	return nets, nil
}

// policy is the part that the registry follows, and that may change while it runs.
func (s *settings) policy() registry.Policy {
	p := registry.Policy{
		TagTTL: s.Tags.TTL.d, MaxStale: time.Duration(s.Tags.MaxStale), NegativeTTL: time.Duration(s.Tags.NegativeTTL),
		KeepGone: s.Tags.OnGone.word == "keep", Allow: s.Allow, Deny: s.Deny, Private: s.Upstream.Private,
		QuotaReserve: float64(s.Quota.Reserve), ReadAhead: bool(s.ReadAhead),
		Limits: fetch.Limits{Transfers: int(s.Limits.Transfers), Orphans: int(s.Limits.Orphans), Ranges: int(s.Limits.Ranges), Bypass: int(s.Limits.Bypass)},
	}
	for _, r := range s.Tags.Rules {
		p.Tags = append(p.Tags, registry.TagRule{Match: string(r.Match), TTL: r.TTL.d, MaxStale: r.MaxStale.d, Refresh: bool(r.Refresh)})
	}
	return p
}

func (s *settings) prunePolicy() prune.Policy {
	d := s.Docker.Prune
	return prune.Policy{
		High: float64(d.High), Low: float64(d.Low), Critical: float64(d.Critical), MinAge: time.Duration(d.MinAge),
		Quiet: time.Duration(d.Quiet), MaxWait: time.Duration(d.MaxWait), Tagged: bool(d.Tagged), Keep: d.Keep, KeepFiles: d.KeepFiles,
	}
}

// docker is what the docker commands need.
func (s *settings) docker() dockerSettings {
	return dockerSettings{
		Host: string(s.Docker.Host), Admin: string(s.Docker.Admin), HoldDir: string(s.Docker.HoldDir),
		State: string(s.Docker.State), Policy: s.prunePolicy(),
		Mirror: mirrorURL(s.Listen, s.TLS.CertFile != ""),
	}
}
