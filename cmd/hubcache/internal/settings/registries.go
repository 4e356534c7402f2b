package settings

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Hub is the name of Docker Hub in references, and its key in registries.
const Hub = "docker.io"

// Registries are the registries that are cached, by their names in references: ghcr.io.
type Registries = Map[Registry, *Registry]

// Registry is one of registries. Load has set its URL; what else is unset is as Upstream says.
type Registry struct {
	URL          Text
	Username     Text
	PasswordFile Text
	CAFile       Text
	Private      List
	Allow        List
	Deny         List
	Tags         struct {
		TTL         OptionalDuration
		MaxStale    OptionalDuration
		NegativeTTL OptionalDuration
		OnGone      OptionalOnGone
		Rules       Records[TagRule, *TagRule]
	}
	Quota struct {
		Reserve OptionalPercent
	}
}

func (r *Registry) table() []row {
	t := &r.Tags
	return []row{
		{key: "url", value: &r.URL},
		{key: "username", value: &r.Username},
		{key: "password_file", value: &r.PasswordFile},
		{key: "ca_file", value: &r.CAFile},
		{key: "private", value: &r.Private},
		{key: "allow", value: &r.Allow},
		{key: "deny", value: &r.Deny},
		{key: "tags", rows: []row{
			{key: "ttl", value: &t.TTL},
			{key: "max_stale", value: &t.MaxStale},
			{key: "negative_ttl", value: &t.NegativeTTL},
			{key: "on_gone", value: &t.OnGone},
			{key: "rules", value: &t.Rules},
		}},
		{key: "quota", rows: []row{{key: "reserve", value: &r.Quota.Reserve}}},
	}
}

// check finds nothing: what is wrong with a registry needs its name. See Loaded.checkRegistries.
func (r *Registry) check() error { return nil }

// complete sets the URL that the registry of that name has, unless another one is set.
func (r *Registry) complete(registry string) {
	if r.URL != "" {
		return
	}
	r.URL = Text("https://" + registry)
	if registry == Hub {
		r.URL = Text(textOf(&Default().Upstream.URL))
	}
}

// Upstream is a registry that is cached, with the settings that hold for it: its own, else those of
// tags and quota. Docker Hub's are those of upstream, allow and deny, or of its entry in
// registries.
type Upstream struct {
	Name string // "ghcr.io": its key in registries; Hub for Docker Hub
	Key  string // where its settings are: "upstream", or "registries.ghcr.io"

	URL          string // a scheme and a host
	Username     string // ""; anonymous
	PasswordFile string
	CAFile       string // "": the system's certificates
	Private      List
	Allow, Deny  List

	TagTTL       *time.Duration // nil: see tags.ttl
	MaxStale     time.Duration
	NegativeTTL  time.Duration
	OnGone       OnGone
	Rules        []TagRule
	QuotaReserve Percent

	own map[string]bool // which of allow, deny and tags.rules are the entry's own
}

// KeyOf returns the key of one of the registry's settings, such as "private" or "tags.rules". It is
// the top-level one where the registry has none of its own.
func (u Upstream) KeyOf(setting string) string {
	if own := u.own[setting]; own || setting == "private" {
		return u.Key + "." + setting
	}
	return setting
}

// Upstreams returns all registries that are cached: Docker Hub first, then the others by name.
func (s *Settings) Upstreams() []Upstream {
	all := []Upstream{s.hub()}
	for _, registry := range slices.Sorted(maps.Keys(s.Registries)) {
		if registry != Hub {
			all = append(all, s.registry(registry))
		}
	}
	return all
}

// hub is Docker Hub.
func (s *Settings) hub() Upstream {
	if s.Registries[Hub] == nil {
		u := s.defaults(Hub, "upstream")
		from := &s.Upstream
		u.URL, u.Username, u.PasswordFile, u.CAFile = string(from.URL), string(from.Username), string(from.PasswordFile), string(from.CAFile)
		u.Private, u.Allow, u.Deny = from.Private, s.Allow, s.Deny
		return u
	}
	u := s.registry(Hub)
	if len(u.Allow) == 0 {
		u.Allow = s.Allow
	}
	if len(u.Deny) == 0 {
		u.Deny = s.Deny
	}
	return u
}

// defaults are the settings that hold for a registry that has none.
func (s *Settings) defaults(registry, key string) Upstream {
	t := &s.Tags
	return Upstream{
		Name: registry, Key: key, TagTTL: t.TTL.D, MaxStale: time.Duration(t.MaxStale), NegativeTTL: time.Duration(t.NegativeTTL),
		OnGone: t.OnGone, Rules: t.Rules, QuotaReserve: s.Quota.Reserve,
	}
}

// registry is an entry of registries.
func (s *Settings) registry(registry string) Upstream {
	u, r := s.defaults(registry, "registries."+registry), s.Registries[registry]
	u.URL, u.Username, u.PasswordFile, u.CAFile = string(r.URL), string(r.Username), string(r.PasswordFile), string(r.CAFile)
	u.Private, u.Allow, u.Deny = r.Private, r.Allow, r.Deny
	if r.Tags.TTL.D != nil {
		u.TagTTL = r.Tags.TTL.D
	}
	if d := r.Tags.MaxStale.D; d != nil {
		u.MaxStale = *d
	}
	if d := r.Tags.NegativeTTL.D; d != nil {
		u.NegativeTTL = *d
	}
	u.OnGone = cmp.Or(OnGone(r.Tags.OnGone), u.OnGone)
	u.own = map[string]bool{"allow": len(r.Allow) > 0, "deny": len(r.Deny) > 0, "tags.rules": len(r.Tags.Rules) > 0}
	if u.own["tags.rules"] {
		u.Rules = r.Tags.Rules
	}
	if p := r.Quota.Reserve.P; p != nil {
		u.QuotaReserve = *p
	}
	return u
}

// OptionalPercent is a share that may be unset: then P is nil.
type OptionalPercent struct{ P *Percent }

// UnmarshalText takes what Percent takes.
func (o *OptionalPercent) UnmarshalText(b []byte) error {
	var p Percent
	if err := p.UnmarshalText(b); err != nil {
		return err
	}
	o.P = &p
	return nil
}

// MarshalText returns nothing when it is unset.
func (o OptionalPercent) MarshalText() ([]byte, error) {
	if o.P == nil {
		return nil, nil
	}
	return o.P.MarshalText()
}

// Kind implements Value.
func (OptionalPercent) Kind() string { return "percent" }

// OptionalOnGone is an OnGone that may be unset: "".
type OptionalOnGone string

// UnmarshalText takes what OnGone takes, and nothing.
func (o *OptionalOnGone) UnmarshalText(b []byte) error {
	return oneOf(o, b, "", OptionalOnGone(AnswerGone), OptionalOnGone(KeepGone))
}

// MarshalText returns the word.
func (o OptionalOnGone) MarshalText() ([]byte, error) { return []byte(o), nil }

// Kind implements Value.
func (OptionalOnGone) Kind() string { return "value" }
