package dashboard

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
)

// size is a number of bytes as people read it, in powers of 1024, with three digits.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 999.5 && unit < 5 {
		v /= 1024
		unit++
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, v, [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}[unit])
}

// percent is n of of in words: none and all are only said when it is so.
func percent(n, of int64) string {
	if of <= 0 {
		return "–"
	}
	p := 100 * float64(n) / float64(of)
	switch {
	case n > 0 && p < 1:
		return "under 1 %"
	case n < of && p > 99:
		return "over 99 %"
	}
	return fmt.Sprintf("%.0f %%", p)
}

// ago is roughly how long a time is ago.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	if d < 5*time.Second {
		return "now"
	}
	return inWords(d) + " ago"
}

// inWords is roughly how long d is.
func inWords(d time.Duration) string {
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d >= u.of {
			return plural(int64(d/u.of), u.name)
		}
	}
	return plural(int64(d/time.Second), "second")
}

// upTo is how long d is, rounded up, so that it never promises too much.
func upTo(d time.Duration) string {
	minutes := int64((d + time.Minute - 1) / time.Minute)
	switch hours := minutes / 60; {
	case hours == 0:
		return plural(minutes, "minute")
	case minutes%60 == 0:
		return plural(hours, "hour")
	default:
		return plural(hours, "hour") + " and " + plural(minutes%60, "minute")
	}
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// familiar is a whole reference as people write it, with a digest that isn't longer than docker
// shows it.
func familiar(reference string) string {
	repository, digest, ok := strings.Cut(name.Familiar(reference), "@")
	if !ok {
		return repository
	}
	algorithm, hex, _ := strings.Cut(digest, ":")
	return repository + "@" + algorithm + ":" + hex[:min(12, len(hex))]
}

// upstreamWords says how an upstream does, and what to do if it doesn't.
func upstreamWords(u admin.Upstream) (state, todo string) {
	switch u.State {
	case "ok":
		return "answers", ""
	case "cooling":
		return "limits requests", "Cached images are served. The cache asks again when it may. An access token has a larger quota."
	case "denied":
		return "access token " + u.Credential.State, "Look at the file of the setting password_file, or make a new token. Cached public images are served."
	}
	return "can't be used", cmp.Or(failureWords(u.Failure), "It doesn't answer.") + " Cached images are served."
}

// failureWords says why an upstream can't be used; "" if that isn't known.
func failureWords(f *admin.Failure) string {
	if f == nil {
		return ""
	}
	text := map[string]string{
		"dns":         "The name %s can't be resolved: look at the DNS of this machine.",
		"refused":     "%s refuses connections.",
		"unreachable": "There is no way to %s: look at the network of this machine.",
		"timeout":     "%s doesn't answer in time.",
		"tls":         "The certificate of %s isn't trusted: see upstream.ca_file.",
		"clock":       "The certificate of %s isn't valid now: look at the clock of this machine.",
		"proxy":       "The proxy on the way to %s fails: look at HTTPS_PROXY.",
	}[f.Kind]
	if text == "" {
		text = "%s answers with an error."
		if f.Status != 0 {
			text = fmt.Sprintf("%%s answers with an error (HTTP %d).", f.Status)
		}
	}
	return fmt.Sprintf(text, f.Host)
}

// reasons say for each reason of a failure what it means, and what to do.
var reasons = map[string]struct{ What, Todo string }{
	registry.ReasonAbsent:      {"It doesn't exist, or it is private.", "Look at the spelling. A private repository has to be named in the setting private of its registry, and the access token must be allowed to read it."},
	registry.ReasonPrivate:     {"It is private, or doesn't exist.", "A private repository is served only if the setting private of its registry names it."},
	registry.ReasonRequest:     {"The request makes no sense to a registry.", "Look at the name and at the program that sent it."},
	registry.ReasonSettings:    {"The settings of this cache don't allow it.", "See registries, allow and deny in the settings."},
	registry.ReasonBusy:        {"This cache had more to do than its limits allow.", "Clients try again by themselves. If it happens often, raise limits.transfers or limits.client."},
	registry.ReasonUnsupported: {"The image has an old or very large manifest, which no cache serves.", "Clients then ask the registry themselves. Nothing has to be done."},
	registry.ReasonCredential:  {"The registry refuses the access token of this cache, or its file can't be read.", "Look at the file of the setting password_file, or make a new token."},
	registry.ReasonThrottled:   {"The registry limits pulls, and the quota is used up.", "It comes back by itself. With an access token the quota is larger (upstream.username)."},
	registry.ReasonTimeout:     {"The registry didn't answer in time.", "Clients try again. If it lasts, look at the network of this machine with hubcache doctor."},
	registry.ReasonUnreachable: {"The registry couldn't be reached.", "Look at network, DNS and proxy of this machine: hubcache doctor says what is wrong."},
	registry.ReasonCertificate: {"The certificate of the registry isn't trusted.", "If a proxy of yours opens TLS, name its CA in the setting ca_file."},
	registry.ReasonBroken:      {"The registry answered with an error.", "Clients try again. Look at the registry's status page if it lasts."},
	registry.ReasonCorrupt:     {"The registry sent other bytes than it should. Nothing of them was kept.", "Clients try again. If it lasts, look for a proxy that changes what passes."},
	registry.ReasonVisibility:  {"Nobody can tell at the moment whether the repository is public.", "It is tried again within a minute. A repository of yours can be named in the setting private of its registry."},
	registry.ReasonDisk:        {"What is cached couldn't be read from the disk.", "The log says which file. Look at the disk."},
}
