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
	"upstream_requests_total":       {"Requests to the registry and its CDN.", "registry"},
	"upstream_responses_total":      {"Answers to upstream requests, by class of status; error: there was none.", "registry", "class"},
	"upstream_token_requests_total": {"Requests to the token service, by result.", "registry", "result"},
	"upstream_state":                {"1 for the state that the upstream is in (ok, cooling, denied, down), 0 for the others.", "registry", "state"},
	"upstream_ratelimit_limit":      {"Pulls allowed in a window, as the upstream says.", "registry"},
	"upstream_ratelimit_remaining":  {"Pulls left in the window.", "registry"},
	"upstream_ratelimit_window_seconds": {
		"Length of the window.", "registry"},
	"upstream_ratelimit_reset_timestamp_seconds": {
		"When the window ends at the latest: from then on limit and remaining say nothing.", "registry"},
	"upstream_credential_state":     {"1 for the state of the access token (accepted, refused, expired, missing and so on), 0 for the others.", "registry", "state"},
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
	"shared_up":                     {"1 while the part of the shared tier is well, 0 while this node goes on without it.", "engine"},
	"shared_hits_total":             {"Manifests and parts of blobs that came from the shared bucket or another node."},
	"shared_bytes_total":            {"Bytes of them."},
	"shared_mismatches_total":       {"What came from there and had wrong bytes. None was kept."},
	"shared_recalls_total":          {"Checks of tags that another node had just made."},
	"shared_budget_bytes":           {"The budget of the shared bucket."},
	"shared_bucket_bytes":           {"Blobs and manifests in the shared bucket when this node last counted them: only one node does."},
	"shared_evictions_total":        {"Objects that this node has deleted from the shared bucket."},
	"shared_evicted_bytes_total":    {"Bytes of them."},
	"shared_uploads":                {"Blobs and manifests that aren't in the shared bucket yet."},
	"inflight_downloads":            {"Blobs that are being downloaded."},
	"cache_size_bytes":              {"Bytes of the files in blobs/ and ingest/."},
	"cache_reserved_bytes":          {"Bytes promised to downloads, whose files have not grown to it yet."},
	"cache_pinned_bytes":            {"Bytes of pinned images, which are not evicted."},
	"cache_pins":                    {"Images that are pinned."},
	"warm_last_run_timestamp_seconds": {
		"When the last run of the warm schedule began; absent: there was none."},
	"warm_last_success_timestamp_seconds": {
		"When a run of the warm schedule last ended without a failure; absent: never."},
	"warm_next_run_timestamp_seconds": {
		"When the next run of the warm schedule begins; absent: never."},
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

// sender sends the values of one scrape.
type sender struct {
	c  *collector
	ch chan<- prometheus.Metric
}

func (s sender) send(t prometheus.ValueType, name string, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(s.c.descs[name], t, v, labels...)
}

func (s sender) count(name string, v int64, labels ...string) {
	s.send(prometheus.CounterValue, name, float64(v), labels...)
}

func (s sender) gauge(name string, v int64, labels ...string) {
	s.send(prometheus.GaugeValue, name, float64(v), labels...)
}

func (s sender) seconds(name string, d time.Duration) {
	s.send(prometheus.GaugeValue, name, d.Seconds())
}

// shared sends nothing of what isn't shared.
func (s sender) shared(d Shared) {
	if d.State == "off" {
		return
	}
	for engine, state := range map[string]string{"bucket": d.Bucket, "lease": d.Lease} {
		switch state {
		case "off":
		case "well":
			s.gauge("shared_up", 1, engine)
		default:
			s.gauge("shared_up", 0, engine)
		}
	}
	s.count("shared_hits_total", d.Hits)
	s.count("shared_bytes_total", d.Bytes)
	s.count("shared_mismatches_total", d.Mismatches)
	s.count("shared_recalls_total", d.Recalls)
	s.gauge("shared_uploads", int64(d.Uploads))
	if d.BudgetBytes > 0 {
		s.gauge("shared_budget_bytes", d.BudgetBytes)
		s.gauge("shared_bucket_bytes", d.BucketBytes)
		s.count("shared_evictions_total", d.Evictions)
		s.count("shared_evicted_bytes_total", d.EvictedBytes)
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st, r, to := c.a.Store.Stats(), c.a.Registry.Stats(), sender{c, ch}
	to.requests("manifest", r.Manifest)
	to.requests("blob", r.Blob)
	to.pulls(r)
	to.store(st)
	to.shared(c.a.shared())
	to.count("slow_readers_total", st.SlowReaders+r.SlowReaders)
	to.count("connections_refused_total", c.a.Refused())
	if c.a.LastReload != nil {
		to.reload(c.a.LastReload())
	}
	to.gauge("build_info", 1, c.a.Version, runtime.Version())
	to.seconds("uptime_seconds", time.Since(c.a.Started))
	if c.a.Warm != nil {
		to.warm(c.a.Warm())
	}
	for _, u := range r.Upstreams {
		to.upstream(u)
	}
}

// pulls sends what the requests of both kinds have in common.
func (s sender) pulls(r registry.Stats) {
	s.count("read_ahead_hits_total", r.Blob.ReadAhead)
	s.count("read_ahead_unused_bytes_total", r.ReadAheadUnused)
	s.count("hit_bytes_total", r.Hit)
	s.count("served_bytes_total", r.Served)
	s.count("upstream_bytes_total", r.Fetched)
	s.count("upstream_resumes_total", r.Resumes)
	s.count("digest_mismatch_total", r.DigestMismatches)
	s.count("stale_referrers_total", r.StaleReferrers)
	s.count("stale_served_total", r.Manifest.Stale)
	s.gauge("visibility_overdue", int64(r.OverdueVisibilities))
	s.gauge("visibility_oldest_seconds", int64(r.OldestVisibility.Seconds()))
	s.gauge("inflight_downloads", int64(len(r.Inflight)))
}

// store sends the metrics of what is on the disk.
func (s sender) store(st storage.Stats) {
	s.count("cache_corrupt_total", st.Corrupt)
	s.count("cache_write_errors_total", st.WriteErrors)
	for _, why := range []storage.EvictionReason{storage.ForBudget, storage.ForMinFree, storage.ForInodes} {
		s.count("evictions_total", st.EvictedFor[why].Count, string(why))
		s.count("evicted_bytes_total", st.EvictedFor[why].Bytes, string(why))
	}
	s.gauge("cache_size_bytes", st.Bytes)
	s.gauge("cache_reserved_bytes", st.ReservedBytes)
	s.gauge("cache_pinned_bytes", st.PinnedBytes)
	s.gauge("cache_pins", st.Pins)
	s.gauge("cache_limit_bytes", st.BudgetBytes)
	s.gauge("cache_index_bytes", st.IndexBytes)
	s.gauge("cache_entries", st.Blobs, "blob")
	s.gauge("cache_entries", st.Manifests, "manifest")
	s.gauge("cache_entries", st.Tags, "tag")
	for _, kind := range []storage.ShortageKind{storage.ImageTooLarge, storage.WorkingSet, storage.DiskTooSmall, storage.PinsTooLarge} {
		needs := int64(0)
		for _, short := range st.Shortages {
			if short.Kind == kind {
				needs = short.Needs
			}
		}
		s.gauge("cache_needed_bytes", needs, string(kind))
	}
	if st.DiskBytes > 0 {
		s.gauge("disk_size_bytes", st.DiskBytes)
		s.gauge("disk_free_bytes", st.DiskFreeBytes)
	}
	if !st.OldestUse.IsZero() {
		s.seconds("cache_longest_idle_seconds", time.Since(st.OldestUse))
	}
}

// requests sends results, errors and times of one kind of requests. No blob is revalidated, stale or in quarantine.
func (s sender) requests(kind string, q registry.Requests) {
	for result, n := range map[registry.Outcome]int64{registry.OutcomeHit: q.Hit, registry.OutcomeRevalidated: q.Revalidated, registry.OutcomeMiss: q.Miss,
		registry.OutcomeShared: q.Shared, registry.OutcomeStale: q.Stale, registry.OutcomeBypass: q.Bypass, registry.OutcomeQuarantine: q.Quarantine, registry.OutcomeError: q.Error} {
		if kind == "manifest" || !ofManifestsAlone(result) {
			s.count("requests_total", n, kind, string(result))
		}
	}
	for cause, n := range map[string]int64{"client": q.Errors.Client, "policy": q.Errors.Policy, "upstream": q.Errors.Upstream, "disk": q.Errors.Disk} {
		s.count("request_errors_total", n, kind, cause)
	}
	for outcome, h := range q.FirstByte {
		if kind == "blob" && ofManifestsAlone(outcome) {
			continue
		}
		buckets := map[float64]uint64{}
		for i, n := range h.Buckets {
			buckets[registry.FirstByteBounds[i].Seconds()] = uint64(n)
		}
		s.ch <- prometheus.MustNewConstHistogram(s.c.descs["request_first_byte_seconds"], uint64(h.Count), h.Sum.Seconds(), buckets, kind, string(outcome))
	}
}

// ofManifestsAlone reports whether no request for a blob has that outcome.
func ofManifestsAlone(o registry.Outcome) bool {
	return o == registry.OutcomeRevalidated || o == registry.OutcomeStale || o == registry.OutcomeQuarantine
}

// reload sends the metrics of the last SIGHUP, if there was one.
func (s sender) reload(last LastReload) {
	if last.Time.IsZero() {
		return
	}
	s.gauge("config_last_reload_successful", one(last.OK))
	s.gauge("config_last_reload_timestamp_seconds", last.Time.Unix())
}

// one is 1 for true and 0 for false.
func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// upstream sends the metrics of one upstream.
func (s sender) upstream(u upstream.Stats) {
	s.count("upstream_requests_total", u.Requests, u.Registry)
	for class, n := range u.Responses {
		s.count("upstream_responses_total", n, u.Registry, class)
	}
	for result, n := range u.TokenRequests {
		s.count("upstream_token_requests_total", n, u.Registry, result)
	}
	for _, state := range []string{"ok", "cooling", "denied", "down"} {
		s.gauge("upstream_state", one(state == u.State), u.Registry, state)
	}
	for _, state := range credentialStates {
		s.gauge("upstream_credential_state", one(state == string(u.Credential.State)), u.Registry, state)
	}
	if q := u.RateLimit; q != nil {
		s.gauge("upstream_ratelimit_limit", q.Limit, u.Registry)
		s.gauge("upstream_ratelimit_remaining", q.Remaining, u.Registry)
		s.gauge("upstream_ratelimit_window_seconds", q.WindowSeconds, u.Registry)
		s.gauge("upstream_ratelimit_reset_timestamp_seconds", q.Observed.Unix()+q.WindowSeconds, u.Registry)
	}
}
