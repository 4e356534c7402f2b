package admin

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// collector makes metrics from the same snapshots as Stats, when it is scraped, so that pulls
// have no work with them. No label is a repository or a tag.
type collector struct {
	a     *admin
	descs map[string]*prometheus.Desc // by name in families
}

// families has, for the name of each metric without "hubcache_", its help text and the names
// of its labels.
var families = map[string][]string{
	"requests_total":                {"GETs and HEADs of manifests and blobs, by result.", "kind", "result"},
	"request_errors_total":          {"Requests with the result error, by whose fault it is (client, policy, upstream, disk).", "kind", "cause"},
	"request_first_byte_seconds":    {"Time until the first byte of the answer, by result.", "kind", "result"},
	"read_ahead_hits_total":         {"Requests with the result hit or shared for blobs that were read ahead for the same pull: no hits of earlier work."},
	"hit_bytes_total":               {"Bytes sent to clients that earlier requests had fetched, or another one. Without what was read ahead for the same pull."},
	"served_bytes_total":            {"Bytes of manifests and blobs sent to clients."},
	"upstream_bytes_total":          {"Bytes of manifests and blobs read from upstream."},
	"upstream_requests_total":       {"Requests to the registry and its CDN.", "upstream"},
	"upstream_responses_total":      {"Answers to upstream requests, by class of status; error: there was none.", "upstream", "class"},
	"upstream_token_requests_total": {"Requests to the token service, by result.", "upstream", "result"},
	"upstream_state":                {"1 for the state that the upstream is in (ok, cooling, denied, down), 0 for the others.", "upstream", "state"},
	"upstream_ratelimit_limit":      {"Pulls allowed in a window, as the upstream says.", "upstream"},
	"upstream_ratelimit_remaining":  {"Pulls left in the window.", "upstream"},
	"upstream_ratelimit_window_seconds": {
		"Length of the window.", "upstream"},
	"upstream_ratelimit_reset_timestamp_seconds": {
		"When the window ends at the latest: from then on limit and remaining say nothing.", "upstream"},
	"upstream_credential_state":     {"1 for the state of the access token (accepted, refused, expired, missing and so on), 0 for the others.", "upstream", "state"},
	"upstream_resumes_total":        {"Broken or stalled downloads that were resumed with Range."},
	"digest_mismatch_total":         {"Downloads with a wrong digest or length. None was kept."},
	"cache_corrupt_total":           {"Blobs dropped because their bytes had changed on the disk."},
	"cache_write_errors_total":      {"Errors of the disk. The clients were served all the same."},
	"stale_referrers_total":         {"Referrers of cached manifests answered while the upstream could not be asked."},
	"stale_served_total":            {"Tags served from the cache because the upstream could not be asked."},
	"visibility_overdue":            {"Public repositories, asked for in the last hour, of which nobody can tell whether they still are public."},
	"visibility_oldest_seconds":     {"Age of the oldest visibility among them; 0 when there are none."},
	"read_ahead_unused_bytes_total": {"Bytes read ahead that nobody asked for within ten minutes."},
	"connections_refused_total":     {"Connections of clients whose addresses are not in listen_allow."},
	"inflight_downloads":            {"Blobs that are being downloaded."},
	"cache_size_bytes":              {"Bytes of the files in blobs/ and ingest/."},
	"cache_reserved_bytes":          {"Bytes promised to downloads, whose files have not grown to it yet."},
	"cache_pinned_bytes":            {"Bytes of pinned images, which are not evicted."},
	"cache_pins":                    {"Images that are pinned."},
	"cache_limit_bytes":             {"The budget, in bytes."},
	"cache_needed_bytes":            {"Bytes of budget, or of disk for the cache, that would do for what clients ask for; 0 when nothing is too small.", "kind"},
	"cache_index_bytes":             {"Size of the index, which the budget does not include."},
	"cache_entries":                 {"Blobs, manifests and tags in the cache.", "kind"},
	"cache_longest_idle_seconds":    {"Time since the last use of what is evicted next. A short one means that the cache is small."},
	"disk_size_bytes":               {"Size of the file system that the cache is on."},
	"disk_free_bytes":               {"Bytes that are free on the file system that the cache is on, for the server."},
	"evictions_total":               {"Blobs and manifests evicted, by what room was made for: the budget, min_free, or inodes.", "reason"},
	"evicted_bytes_total":           {"Bytes of evicted blobs and manifests, by what room was made for.", "reason"},
	"slow_readers_total":            {"Clients that were cut off because they read slowly and kept room or slots that others needed."},
	"config_last_reload_successful": {"1 if the last SIGHUP changed to the new settings, 0 if the old ones stayed."},
	"config_last_reload_timestamp_seconds": {
		"When the last SIGHUP was."},
	"build_info":     {"1, with the versions of the program and of Go as labels.", "version", "goversion"},
	"uptime_seconds": {"Time since the start."},
}

// credentialStates are the states that Credential has.
var credentialStates = []string{"none", "untried", "accepted", "refused", "expired", "throttled", "missing", "unreadable", "empty", "malformed"}

func newCollector(a *admin) *collector {
	c := &collector{a: a, descs: map[string]*prometheus.Desc{}}
	for name, f := range families {
		c.descs[name] = prometheus.NewDesc("hubcache_"+name, f[0], f[1:], nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s, r := c.a.Store.Stats(), c.a.Registry.Stats()
	send := func(t prometheus.ValueType, name string, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], t, v, labels...)
	}
	count := func(name string, v int64, labels ...string) {
		send(prometheus.CounterValue, name, float64(v), labels...)
	}
	gauge := func(name string, v int64, labels ...string) { send(prometheus.GaugeValue, name, float64(v), labels...) }

	for kind, q := range map[string]registry.Requests{"manifest": r.Manifest, "blob": r.Blob} {
		for result, n := range map[string]int64{"hit": q.Hit, "revalidated": q.Revalidated, "miss": q.Miss, "shared": q.Shared,
			"stale": q.Stale, "bypass": q.Bypass, "error": q.Error} {
			if kind == "manifest" || result != "revalidated" && result != "stale" {
				count("requests_total", n, kind, result)
			}
		}
	}
	c.answers("manifest", r.Manifest, ch)
	c.answers("blob", r.Blob, ch)
	count("read_ahead_hits_total", r.Blob.ReadAhead)
	count("hit_bytes_total", r.Hit)
	count("served_bytes_total", r.Served)
	count("upstream_bytes_total", r.Fetched)
	count("upstream_resumes_total", r.Resumes)
	count("digest_mismatch_total", r.DigestMismatches)
	count("cache_corrupt_total", s.Corrupt)
	count("cache_write_errors_total", s.WriteErrors)
	count("stale_referrers_total", r.StaleReferrers)
	count("stale_served_total", r.Manifest.Stale)
	count("read_ahead_unused_bytes_total", r.ReadAheadUnused)
	for _, why := range []storage.EvictionReason{storage.ForBudget, storage.ForMinFree, storage.ForInodes} {
		count("evictions_total", s.EvictedFor[why].Count, string(why))
		count("evicted_bytes_total", s.EvictedFor[why].Bytes, string(why))
	}
	count("connections_refused_total", c.a.Refused())
	count("slow_readers_total", s.SlowReaders+r.SlowReaders)
	gauge("visibility_overdue", int64(r.OverdueVisibilities))
	gauge("visibility_oldest_seconds", int64(r.OldestVisibility.Seconds()))
	gauge("inflight_downloads", int64(len(r.Inflight)))
	gauge("cache_size_bytes", s.Bytes)
	gauge("cache_reserved_bytes", s.ReservedBytes)
	gauge("cache_pinned_bytes", s.PinnedBytes)
	gauge("cache_pins", s.Pins)
	gauge("cache_limit_bytes", s.BudgetBytes)
	gauge("cache_index_bytes", s.IndexBytes)
	for _, kind := range []storage.ShortageKind{storage.ImageTooLarge, storage.WorkingSet, storage.DiskTooSmall, storage.PinsTooLarge} {
		needs := int64(0)
		for _, short := range s.Shortages {
			if short.Kind == kind {
				needs = short.Needs
			}
		}
		gauge("cache_needed_bytes", needs, string(kind))
	}
	if s.DiskBytes > 0 {
		gauge("disk_size_bytes", s.DiskBytes)
		gauge("disk_free_bytes", s.DiskFreeBytes)
	}
	gauge("cache_entries", s.Blobs, "blob")
	gauge("cache_entries", s.Manifests, "manifest")
	gauge("cache_entries", s.Tags, "tag")
	if !s.OldestUse.IsZero() {
		send(prometheus.GaugeValue, "cache_longest_idle_seconds", time.Since(s.OldestUse).Seconds())
	}
	if c.a.LastReload != nil {
		c.reload(send)
	}
	gauge("build_info", 1, c.a.Version, runtime.Version())
	send(prometheus.GaugeValue, "uptime_seconds", time.Since(c.a.Started).Seconds())
	for _, u := range r.Upstreams {
		c.upstream(u, count, gauge)
	}
}

// answers sends the errors and the times of one kind of requests.
func (c *collector) answers(kind string, q registry.Requests, ch chan<- prometheus.Metric) {
	for cause, n := range map[string]int64{"client": q.Errors.Client, "policy": q.Errors.Policy, "upstream": q.Errors.Upstream, "disk": q.Errors.Disk} {
		ch <- prometheus.MustNewConstMetric(c.descs["request_errors_total"], prometheus.CounterValue, float64(n), kind, cause)
	}
	for outcome, h := range q.FirstByte {
		if kind == "blob" && (outcome == registry.OutcomeRevalidated || outcome == registry.OutcomeStale) {
			continue // no blob is either
		}
		buckets := map[float64]uint64{}
		for i, n := range h.Buckets {
			buckets[registry.FirstByteBounds[i].Seconds()] = uint64(n)
		}
		ch <- prometheus.MustNewConstHistogram(c.descs["request_first_byte_seconds"], uint64(h.Count), h.Sum.Seconds(), buckets, kind, string(outcome))
	}
}

// reload sends the metrics of the last SIGHUP, if there was one.
func (c *collector) reload(send func(prometheus.ValueType, string, float64, ...string)) {
	last := c.a.LastReload()
	if last.Time.IsZero() {
		return
	}
	send(prometheus.GaugeValue, "config_last_reload_successful", float64(one(last.OK)))
	send(prometheus.GaugeValue, "config_last_reload_timestamp_seconds", float64(last.Time.Unix()))
}

// one is 1 for true and 0 for false.
func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// upstream sends the metrics of one upstream.
func (c *collector) upstream(u upstream.Stats, count, gauge func(string, int64, ...string)) {
	count("upstream_requests_total", u.Requests, u.Registry)
	for class, n := range u.Responses {
		count("upstream_responses_total", n, u.Registry, class)
	}
	for result, n := range u.TokenRequests {
		count("upstream_token_requests_total", n, u.Registry, result)
	}
	for _, state := range []string{"ok", "cooling", "denied", "down"} {
		gauge("upstream_state", one(state == u.State), u.Registry, state)
	}
	for _, state := range credentialStates {
		gauge("upstream_credential_state", one(state == string(u.Credential.State)), u.Registry, state)
	}
	if q := u.RateLimit; q != nil {
		gauge("upstream_ratelimit_limit", q.Limit, u.Registry)
		gauge("upstream_ratelimit_remaining", q.Remaining, u.Registry)
		gauge("upstream_ratelimit_window_seconds", q.WindowSeconds, u.Registry)
		gauge("upstream_ratelimit_reset_timestamp_seconds", q.Observed.Unix()+q.WindowSeconds, u.Registry)
	}
}
