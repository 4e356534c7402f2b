// Package settings is the table of all settings, and how they are read from flags, the
// environment and a YAML file, checked and printed.
//
// A new setting is a field of Settings, a row in its table, and an entry in
// docs/use/config.example.yaml; the tests say what is missing. Everything else follows from the
// row: the flag with its help, the environment variable, the faults with their lines, config
// show, and when a change takes effect.
package settings

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Settings are all settings, in the shape of the file; docs/use/config.example.yaml says what
// each is for. A flag is used before the environment, then the file, then the default. No
// setting is a secret: there are only names of files with secrets.
type Settings struct {
	Listen      List // host:port or unix:/path
	ListenAllow List // networks of clients; empty: everyone
	TLS         struct {
		CertFile Text
		KeyFile  Text
		// ClientCAFile has the authorities of the clients' certificates; "" asks for none.
		ClientCAFile Text
	}
	Admin struct {
		Listen    List
		Hosts     List // further Host names that requests may carry
		TokenFile Text // of requests that change the cache
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
	Registries Registries // beside upstream, which is Docker Hub; see Upstreams
	Tags       struct {
		TTL         OptionalDuration
		MaxStale    Duration
		NegativeTTL Duration
		OnGone      OnGone
		Rules       Records[TagRule, *TagRule]
	}
	Warm struct {
		Schedule   Schedule
		References ReferenceList
		Files      PathList // compose files
		Platforms  PlatformList
	}
	Allow List
	Deny  List
	// DenyDigests are manifests and blobs that no client gets, of whatever registry.
	DenyDigests DigestList
	Quota       struct {
		Reserve Percent
	}
	Limits struct {
		Transfers Count
		Orphans   Count
		Ranges    Count
		Bypass    Count
		Client    Limit // 0: none
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
	Shared  Shared // with other nodes
	Metrics struct {
		Listen List // host:port or unix:/path, with /metrics alone
		Compat Bool // the names of distribution's registry, too
	}
	Log struct {
		Level  LogLevel
		Format LogFormat
	}
}

// TagRule is one of tags.rules: other values for the tags that match. What is unset is as
// in tags.
type TagRule struct {
	Match    Text // a pattern of repository and tag
	TTL      OptionalDuration
	MaxStale OptionalDuration
	Refresh  Bool // ask upstream about a tag in use before its TTL ends
	// Quarantine is how long a digest must have been known before the tag is answered with it; 0: no time.
	Quarantine Duration
}

func (r *TagRule) table() []row {
	return []row{
		{key: "match", value: &r.Match},
		{key: "ttl", value: &r.TTL},
		{key: "max_stale", value: &r.MaxStale},
		{key: "refresh", value: &r.Refresh},
		{key: "quarantine", value: &r.Quarantine},
	}
}

func (r *TagRule) check() error {
	if r.Match == "" {
		return errors.New("a rule needs match, a pattern like library/*:*-alpine")
	}
	return nil
}

// Default returns the settings before anybody has set one.
func Default() *Settings {
	s := &Settings{}
	setDefaults(s.table())
	return s
}

// defaultDataDir is the system's folder for root and for a service, else one in the user's
// cache folder.
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

// table is the table of all settings.
func (s *Settings) table() []row {
	return []row{
		{key: "listen", effect: onRestart, value: &s.Listen, defValue: "127.0.0.1:5000", flag: "listen",
			help: "`address` for pulls"},
		{key: "listen_allow", effect: onReload, value: &s.ListenAllow, flag: "listen-allow",
			help: "client `network`, like 10.0.0.0/8 (default all)"},
		{key: "tls", effect: onRestart, rows: []row{
			{key: "cert_file", value: &s.TLS.CertFile, flag: "tls-cert-file",
				help: "`file` with the certificate chain for https"},
			{key: "key_file", value: &s.TLS.KeyFile, flag: "tls-key-file",
				help: "`file` with the certificate's key"},
			{key: "client_ca_file", value: &s.TLS.ClientCAFile},
		}},
		{key: "admin", effect: onRestart, rows: []row{
			{key: "listen", value: &s.Admin.Listen, defValue: "127.0.0.1:5001", flag: "admin-listen",
				help: "admin `address`"},
			{key: "hosts", value: &s.Admin.Hosts},
			{key: "token_file", value: &s.Admin.TokenFile},
		}},
		{key: "data_dir", effect: onRestart, value: &s.DataDir, defValue: defaultDataDir(), flag: "data-dir",
			help: "`folder` of the cache (default /var/lib/hubcache, for users $XDG_CACHE_HOME/hubcache)"},
		{key: "budget", effect: onReload, value: &s.Budget, defValue: "20GiB", flag: "budget",
			help: "size, or 30% of the disk"},
		{key: "min_free", effect: onReload, value: &s.MinFree, defValue: "1GiB", flag: "min-free",
			help: "space to leave free on the disk"},
		{key: "upstream", effect: onReload, rows: s.upstreamTable()},
		{key: "registries", effect: onReload, value: &s.Registries},
		{key: "tags", effect: onReload, rows: s.tagsTable()},
		{key: "warm", effect: onReload, rows: []row{
			{key: "schedule", value: &s.Warm.Schedule},
			{key: "references", value: &s.Warm.References},
			{key: "files", value: &s.Warm.Files},
			{key: "platforms", value: &s.Warm.Platforms},
		}},
		{key: "allow", effect: onReload, value: &s.Allow},
		{key: "deny", effect: onReload, value: &s.Deny},
		{key: "deny_digests", effect: onReload, value: &s.DenyDigests},
		{key: "quota", effect: onReload, rows: []row{
			{key: "reserve", value: &s.Quota.Reserve, defValue: "10%"},
		}},
		{key: "limits", effect: onReload, rows: []row{
			{key: "transfers", value: &s.Limits.Transfers, defValue: "32"},
			{key: "orphans", value: &s.Limits.Orphans, defValue: "8"},
			{key: "ranges", value: &s.Limits.Ranges, defValue: "6"},
			{key: "bypass", value: &s.Limits.Bypass, defValue: "16"},
			{key: "client", value: &s.Limits.Client, defValue: "0"},
		}},
		{key: "read_ahead", effect: onReload, value: &s.ReadAhead, defValue: "true"},
		{key: "docker", effect: onRun, rows: s.dockerTable()},
		{key: "shared", effect: onRestart, rows: s.Shared.table()},
		{key: "metrics", effect: onRestart, rows: []row{
			{key: "listen", value: &s.Metrics.Listen},
			{key: "compat", value: &s.Metrics.Compat},
		}},
		{key: "log", rows: []row{
			{key: "level", effect: onReload, value: &s.Log.Level, defValue: "info", flag: "log-level",
				help: "debug, info, warn or error"},
			{key: "format", effect: onRestart, value: &s.Log.Format, flag: "log-format",
				help: "text or json (default text on a terminal)"},
		}},
	}
}

func (s *Settings) upstreamTable() []row {
	u := &s.Upstream
	return []row{
		{key: "url", value: &u.URL, defValue: "https://registry-1.docker.io", flag: "upstream",
			help: "`URL` of the registry (default Docker Hub)"},
		{key: "username", value: &u.Username, flag: "username",
			help: "Docker ID, `name` of the access token's account"},
		{key: "password_file", value: &u.PasswordFile, flag: "password-file",
			help: "`file` with the access token"},
		{key: "ca_file", value: &u.CAFile, flag: "upstream-ca-file",
			help: "`file` with certificates to trust upstream"},
		{key: "private", value: &u.Private, flag: "private",
			help: "`pattern` of private repositories to serve"},
	}
}

func (s *Settings) tagsTable() []row {
	t := &s.Tags
	return []row{
		{key: "ttl", value: &t.TTL, flag: "tag-ttl",
			help: "tags are not asked about again this long (default 60s for library/*, else 0)"},
		{key: "max_stale", value: &t.MaxStale, defValue: "168h", flag: "tag-max-stale",
			help: "tags are served stale this long"},
		{key: "negative_ttl", value: &t.NegativeTTL, defValue: "10s"},
		{key: "on_gone", value: &t.OnGone, defValue: string(AnswerGone)},
		{key: "rules", value: &t.Rules},
	}
}

func (s *Settings) dockerTable() []row {
	d := &s.Docker
	p := &d.Prune
	return []row{
		{key: "host", value: &d.Host},
		{key: "admin", value: &d.Admin},
		{key: "hold_dir", value: &d.HoldDir, defValue: "/run/hubcache/hold"},
		{key: "state", value: &d.State, defValue: "/var/lib/hubcache-docker/uses.db"},
		{key: "prune", rows: []row{
			{key: "high_watermark", value: &p.High, defValue: "85%"},
			{key: "low_watermark", value: &p.Low, defValue: "75%"},
			{key: "critical_watermark", value: &p.Critical, defValue: "95%"},
			{key: "min_age", value: &p.MinAge, defValue: "72h"},
			{key: "quiet", value: &p.Quiet, defValue: "10m"},
			{key: "tagged", value: &p.Tagged},
			{key: "keep", value: &p.Keep},
			{key: "keep_files", value: &p.KeepFiles},
			{key: "max_wait", value: &p.MaxWait, defValue: "30m"},
		}},
	}
}

// Reloaded returns what a server runs with after a reload: the values of next where a change
// takes effect then, and those of running, with their sources, for the rest. later are the keys
// of the settings whose values in next take effect only when the server is started again.
// Neither argument is changed, so running may come from an earlier Reloaded.
func Reloaded(running, next *Loaded) (now *Loaded, later []string) {
	s := *next.Settings
	now = &Loaded{Settings: &s, File: next.File, source: maps.Clone(next.source)}
	keepRunning(running.table(), s.table(), asSection)
	for key, r := range leaves(s.table()) {
		if source, ok := running.source[key]; r.effect != onRestart {
			continue
		} else if ok {
			now.source[key] = source
		} else {
			delete(now.source, key)
		}
	}
	return now, needRestart(running.table(), next.table())
}

// Change is a setting that has another value than before. Either value is "" if there is none.
type Change struct{ Key, Old, New string }

// maxShown is how many bytes of a value String shows: a list of rules may be long.
const maxShown = 200

// String is the change for people: "budget: 10GiB → 20GiB".
func (c Change) String() string {
	show := func(s string) string {
		switch {
		case s == "":
			return "nothing"
		case len(s) > maxShown:
			return strings.ToValidUTF8(s[:maxShown], "") + "…"
		}
		return s
	}
	return c.Key + ": " + show(c.Old) + " → " + show(c.New)
}

// Changes returns the settings that differ between before and now, in the order of the table.
func Changes(before, now *Loaded) (changes []Change) {
	was := map[string]string{}
	for key, r := range leaves(before.table()) {
		was[key] = textOf(r.value)
	}
	for key, r := range leaves(now.table()) {
		if text := textOf(r.value); text != was[key] {
			changes = append(changes, Change{key, was[key], text})
		}
		delete(was, key)
	}
	for _, key := range slices.Sorted(maps.Keys(was)) { // of a record that is gone
		if was[key] != "" {
			changes = append(changes, Change{key, was[key], ""})
		}
	}
	return changes
}

// keepRunning sets what needs a restart in now to what it is in running. Both are tables of the
// same type, in a section with that effect. A Map is kept or replaced as a whole.
func keepRunning(running, now []row, section effect) {
	for i, r := range now {
		if r.effect == asSection {
			r.effect = section
		}
		if r.rows != nil {
			keepRunning(running[i].rows, r.rows, r.effect)
		} else if r.effect == onRestart {
			reflect.ValueOf(r.value).Elem().Set(reflect.ValueOf(running[i].value).Elem())
		}
	}
}

// needRestart returns the keys of the settings that differ between two tables and that take
// effect only at a start.
func needRestart(running, next []row) (keys []string) {
	before := map[string]string{}
	for key, r := range leaves(running) {
		if r.effect == onRestart {
			before[key] = textOf(r.value)
		}
	}
	for key, r := range leaves(next) {
		if was, there := before[key]; r.effect == onRestart && (!there || was != textOf(r.value)) {
			keys = append(keys, key)
		}
		delete(before, key)
	}
	return append(keys, slices.Sorted(maps.Keys(before))...)
}
