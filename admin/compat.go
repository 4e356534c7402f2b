package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hubcache/hubcache/registry"
)

// compatCollector makes the metrics that distribution's registry (registry:3) has in proxy mode,
// so that its dashboards go on. registry:2 has no such metrics, only /debug/vars.
type compatCollector struct {
	a                                      *admin
	requests, hits, misses, pulled, pushed *prometheus.Desc
}

func newCompatCollector(a *admin) *compatCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("registry_proxy_"+name+"_total", help, []string{"type"}, nil)
	}
	return &compatCollector{
		a:        a,
		requests: desc("requests", "GETs and HEADs that were answered without an error."),
		hits:     desc("hits", "Requests for what earlier ones had fetched, or another one."),
		misses:   desc("misses", "Requests for what was fetched for them."),
		pulled:   desc("pulled_bytes", "Bytes read from upstream."),
		pushed:   desc("pushed_bytes", "Bytes sent to clients."),
	}
}

// Describe implements prometheus.Collector.
func (c *compatCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.requests, c.hits, c.misses, c.pulled, c.pushed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *compatCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.a.Registry.Stats()
	all := requestsOf(s)
	for _, kind := range []struct {
		name           string
		answered, hits int64
		registry.Requests
	}{
		{"blob", all.Blob.Answered(), all.Blob.Hits(), s.Blob},
		{"manifest", all.Manifest.Answered(), all.Manifest.Hits(), s.Manifest},
	} {
		for d, n := range map[*prometheus.Desc]int64{
			c.requests: kind.answered, c.hits: kind.hits, c.misses: kind.answered - kind.hits, c.pulled: kind.Fetched, c.pushed: kind.Sent,
		} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), kind.name)
		}
	}
}
