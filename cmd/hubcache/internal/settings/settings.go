package settings

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
)

// Settings are all settings, in the shape of the file. Sources, in order: flag,
// environment, file, default. No secret is among them: only the name of a file with one.
type Settings struct {
	Listen      List // host:port or unix:/path
	ListenAllow List // CIDRs of clients; empty: everyone
	TLS         struct {
		CertFile Text
		KeyFile  Text
	}
	Admin struct {
		Listen List
		Hosts  List // further Host names that requests may carry
	}
	DataDir  Text
	Budget   Size
	MinFree  ByteCount
	Upstream struct {
		URL          Text
		Username     Text
		PasswordFile Text
		CAFile       Text
		Private      List
	}
	Tags struct {
		TTL         OptionalDuration
		MaxStale    Duration
		NegativeTTL Duration
		OnGone      OnGone
		Rules       TagRules
	}
	Allow List
	Deny  List
	Quota struct {
		Reserve Percent
	}
	Limits struct {
		Transfers Count
		Orphans   Count
		Ranges    Count
		Bypass    Count
	}
	ReadAhead Bool
	Docker    struct {
		Host    Text
		Admin   Text
		HoldDir Text
		State   Text
		Prune   struct {
			High      Percent
			Low       Percent
			Critical  Percent
			MinAge    Duration
			Quiet     Duration
			Tagged    Bool
			Keep      List
			KeepFiles List
			MaxWait   Duration
		}
	}
	Log struct {
		Level  LogLevel
		Format LogFormat
	}
}

// TagRule is one of tags.rules.
type TagRule struct {
	Match    Text
	TTL      OptionalDuration
	MaxStale OptionalDuration
	Refresh  Bool
}

// TagRules are tags.rules, which only the file can hold.
type TagRules []TagRule

// UnmarshalText always fails.
func (r *TagRules) UnmarshalText([]byte) error { return errors.New("can be set in the file only") }

// Kind implements Value.
func (r *TagRules) Kind() string { return "value" }

// MarshalText returns the list as the file may have it.
func (r *TagRules) MarshalText() ([]byte, error) {
	rules := []map[string]string{}
	for _, rule := range *r {
		m := map[string]string{}
		for _, row := range rule.table("") {
			if v := textOf(row.value); v != "" && v != "false" {
				m[row.key] = v
			}
		}
		rules = append(rules, m)
	}
	return json.Marshal(rules)
}

// table names the settings of one rule.
func (r *TagRule) table(prefix string) []setting {
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
	value Value
	help  string
}

// Default returns the settings before anybody has set one.
func Default() *Settings {
	s := &Settings{}
	s.Listen = List{"127.0.0.1:5000"}
	s.Admin.Listen = List{"127.0.0.1:5001"}
	s.DataDir = Text(defaultDataDir())
	s.Budget.UnmarshalText([]byte("20GiB"))
	s.MinFree.UnmarshalText([]byte("1GiB"))
	s.Upstream.URL = "https://registry-1.docker.io"
	s.Tags.MaxStale = Duration(168 * time.Hour)
	s.Tags.NegativeTTL = Duration(10 * time.Second)
	s.Tags.OnGone = AnswerGone
	s.Quota.Reserve = 0.10
	l := fetch.DefaultLimits()
	s.Limits.Transfers, s.Limits.Orphans, s.Limits.Ranges, s.Limits.Bypass = Count(l.Transfers), Count(l.Orphans), Count(l.Ranges), Count(l.Bypass)
	s.ReadAhead = true
	s.Docker.Host = "unix:///var/run/docker.sock"
	s.Docker.HoldDir = "/run/hubcache/hold"
	s.Docker.State = "/var/lib/hubcache-docker/uses.db"
	p, d := prune.DefaultPolicy(), &s.Docker.Prune
	d.High, d.Low, d.Critical = Percent(p.High), Percent(p.Low), Percent(p.Critical)
	d.MinAge, d.Quiet, d.MaxWait, d.Tagged = Duration(p.MinAge), Duration(p.Quiet), Duration(p.MaxWait), Bool(p.Tagged)
	s.Log.Level = "info"
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
func (s *Settings) table() []setting {
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
func (s *Settings) check() error {
	if len(s.Listen) == 0 {
		return fmt.Errorf("listen: at least one address is needed")
	}
	for _, addr := range s.Listen {
		if err := CheckAddress(addr); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	for _, addr := range s.Admin.Listen {
		if err := CheckAddress(addr); err != nil {
			return fmt.Errorf("admin.listen: %w", err)
		}
	}
	if _, err := s.AllowedClients(); err != nil {
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
	if s.Budget.Share == 0 && s.Budget.Bytes <= 0 {
		return fmt.Errorf("budget: more than nothing is needed")
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

// CheckAddress says what is wrong with an address to listen on, or to ask: host:port or
// unix:/path.
func CheckAddress(addr string) error {
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

// AllowedClients are the networks of listen_allow; an address is a network of its own.
func (s *Settings) AllowedClients() (nets []netip.Prefix, err error) {
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

// Changed returns those keys whose values differ.
func Changed(a, b *Settings, keys ...string) (diff []string) {
	was := map[string]string{}
	for _, row := range a.table() {
		was[row.key] = textOf(row.value)
	}
	for _, row := range b.table() {
		for _, k := range keys {
			if k == row.key && was[k] != textOf(row.value) {
				diff = append(diff, k)
			}
		}
	}
	return diff
}
