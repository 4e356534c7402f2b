package dockerhost

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// TokenRecipe is the one way to give the packaged service an access token. config.yaml of the
// package and operations.md say the same.
const TokenRecipe = tokenCommand + " (paste the token, Enter, Ctrl-D), then password_file: dockerhub-pat in config.yaml, and systemctl restart hubcache"

const tokenCommand = "install -m 600 /dev/stdin /etc/credstore/dockerhub-pat"

// checkUpstream reads what the server knows of an upstream.
func (d *Doctor) checkUpstream(ctx context.Context, u admin.Upstream) {
	d.checkClock(ctx, u)
	d.checkToken(u)
	check := "upstream " + u.Registry
	f := u.Failure
	switch {
	case f != nil && f.Kind == "clock": // said by checkClock
	case f != nil && u.State != "down" && time.Since(f.At) > failureAge:
		detail, advice := describeFailure(*f)
		d.note(check, fmt.Sprintf("%s; that was %v ago, and nobody has tried since", detail, time.Since(f.At).Round(time.Minute)), advice)
	case f != nil:
		detail, advice := describeFailure(*f)
		d.broken(check, detail, advice)
	case u.State == "down":
		d.broken(check, "it can't be reached; only what is cached is served", "check the network, DNS and HTTPS_PROXY of the server")
	case u.State == "cooling":
		d.broken(check, "its limit on pulls is reached; only what is cached is served until it lifts", "an access token raises the limit, and a paid account has none; operations.md of the documentation says which requests count")
	case u.State == "denied" && !TokenFault(u.Credential.State):
		d.broken(check, "it refuses requests with the access token", "make a new token and put it into "+d.tokenFile(u.Registry))
	case u.State == "denied": // said by checkToken
	default:
		d.ok(check, "%s", u.State)
	}
	if q := u.RateLimit; q != nil && q.Limit > 0 {
		status, advice := StatusOK, ""
		if q.Remaining*10 < q.Limit {
			status, advice = StatusNote, "less than a tenth is left"
		}
		d.say("quota", status, fmt.Sprintf("%d of %d pulls are left at %s", q.Remaining, q.Limit, u.Registry), advice)
	}
}

// failureAge is after which time a failure says little of now. The registry has just been asked,
// but perhaps not its CDN.
const failureAge = 10 * time.Minute

// describeFailure says in words why an upstream can't be asked, and what to do.
func describeFailure(f admin.Failure) (detail, advice string) {
	switch f.Kind {
	case "dns":
		return "the name " + f.Host + " can't be resolved", "check DNS on the server's machine (/etc/resolv.conf)"
	case "refused":
		return f.Host + " refuses the connection", "check upstream.url, and what else answers for this address"
	case "unreachable":
		return "there is no way to " + f.Host, "check the network and the firewall of the server's machine"
	case "timeout":
		return f.Host + " does not answer in time", "check the network and the firewall of the server's machine; behind a proxy, set HTTPS_PROXY for the server"
	case "tls":
		return "the certificate of " + f.Host + " is not trusted", "install ca-certificates on the server's machine; if something there opens https, put its authority's certificate into upstream.ca_file"
	case "proxy":
		return "the proxy for " + f.Host + " can't be used", "check HTTPS_PROXY and NO_PROXY of the server"
	}
	if f.Status != 0 {
		return fmt.Sprintf("%s answers %d %s", f.Host, f.Status, http.StatusText(f.Status)), "wait until it works again; until then what is cached is served"
	}
	return f.Host + " breaks off the connection, or answers what makes no sense", "look into the server's log (journalctl -u hubcache)"
}

// TokenFault reports whether a state of the credential says that it can't be used.
func TokenFault(state string) bool {
	switch state {
	case "missing", "unreadable", "empty", "malformed", "refused", "expired":
		return true
	}
	return false
}

// settingsOf are the server's settings for a registry.
func (d *Doctor) settingsOf(registry string) settings.Upstream {
	all := d.running.Upstreams()
	i := slices.IndexFunc(all, func(u settings.Upstream) bool { return u.Name == registry })
	return all[max(0, i)] // one that isn't there any more has been there when the server counted
}

// tokenCheck is the name of the check of a registry's access token.
func tokenCheck(registry string) string {
	if registry == hubName {
		return "token"
	}
	return "token " + registry
}

// tokenFile is the file with the access token as the server opens it.
func (d *Doctor) tokenFile(registry string) string {
	if registry == hubName && d.told != nil && d.told.PasswordFile != "" {
		return d.told.PasswordFile
	}
	return d.settingsOf(registry).PasswordFile
}

// fromCredential reports whether the server has a copy of the token from LoadCredential=.
func (d *Doctor) fromCredential(registry string) bool {
	path := d.settingsOf(registry).PasswordFile
	return path != "" && !filepath.IsAbs(path)
}

// recipe is how the packaged service gets the access token of a registry.
func (d *Doctor) recipe(registry string) string {
	if registry == hubName {
		return TokenRecipe
	}
	file := cmp.Or(d.settingsOf(registry).PasswordFile, "token")
	if filepath.IsAbs(file) {
		return "put the access token into " + file + ", which only the server's user may read"
	}
	return fmt.Sprintf("install -m 600 /dev/stdin /etc/credstore/%s (paste the token, Enter, Ctrl-D), LoadCredential=%s in a drop-in of the service (systemctl edit hubcache), and systemctl restart hubcache", file, file)
}

// renew says how to put a new token where the server finds it.
func (d *Doctor) renew(registry string) string {
	if d.fromCredential(registry) {
		return "make a new one: " + d.recipe(registry)
	}
	return "make a new one and put it into " + d.tokenFile(registry) + "; the server reads it within seconds"
}

// checkToken says what state the access token is in.
func (d *Doctor) checkToken(u admin.Upstream) {
	c, of, check := u.Credential, d.settingsOf(u.Registry), tokenCheck(u.Registry)
	user := of.Username
	exposed := ""
	if c.Exposed {
		exposed = d.tokenFile(u.Registry)
	} else if service, err := InstalledService(d.Root); err == nil && d.fromCredential(u.Registry) {
		if source := service.credentialFile(of.PasswordFile); Exposed(source) {
			exposed = source
		}
	}
	if exposed != "" {
		d.note("password file", "every user of this machine may read "+exposed, "chmod o-r "+exposed)
	}
	if detail, advice := d.fileFault(u.Registry, c); detail != "" {
		if c.Usable {
			d.note(check, detail+"; the one that was read before is in use until the server is started again", advice)
			return
		}
		d.broken(check, detail, advice)
		return
	}
	switch c.State {
	case "refused":
		d.broken(check, fmt.Sprintf("%s refuses the access token of %s", u.Registry, user), d.renew(u.Registry))
	case "expired":
		d.broken(check, fmt.Sprintf("the access token of %s has expired", user), d.renew(u.Registry))
	case "throttled":
		d.broken(check, fmt.Sprintf("the token service of %s limits requests (429); only what is cached is served until it lifts", u.Registry), "wait; if it comes again, something else behind this address logs in too often")
	case "accepted":
		d.ok(check, "%s accepts the access token of %s", u.Registry, user)
	case "untried":
		d.note(check, fmt.Sprintf("the access token of %s has not been needed yet", user), "pull something through the cache and look again")
	case "none":
		if u.Registry == hubName {
			d.note(check, "requests are anonymous: Docker Hub allows very few of them an hour", "set upstream.username and upstream.password_file")
		}
	}
}

// fileFault says what is wrong with the file of the access token; "" when nothing is.
func (d *Doctor) fileFault(registry string, c admin.Credential) (detail, advice string) {
	path := d.tokenFile(registry)
	user := "the server"
	if d.told != nil && d.told.User != "" {
		user = "the server's user " + d.told.User
	}
	fix := d.recipe(registry)
	if !d.fromCredential(registry) && (d.told == nil || d.told.Unit == "") {
		fix = "put the access token into " + path + ", which only the server's user may read"
	}
	switch c.State {
	case "missing":
		if d.fromCredential(registry) {
			return fmt.Sprintf("there is no access token: the service was started without the credential %s", d.settingsOf(registry).PasswordFile), fix
		}
		if _, err := os.Stat(path); err == nil && d.told != nil && d.told.Unit != "" {
			return fmt.Sprintf("the file with the access token, %s, is hidden from %s, which has folders of its own in place of /tmp and /home", path, d.told.Unit), fix
		}
		return fmt.Sprintf("the file with the access token is missing: %s: %s", path, c.Detail), fix
	case "unreadable":
		return fmt.Sprintf("%s can't read the access token: %s: %s", user, path, c.Detail), fix
	case "empty":
		return "the file with the access token is empty: " + path, fix
	case "malformed":
		return fmt.Sprintf("the file with the access token, %s, %s", path, c.Detail), "put the access token into it, and nothing else"
	}
	return "", ""
}

// checkPrivate says which private repositories are served.
func (d *Doctor) checkPrivate() {
	var private []string
	account := false
	for _, u := range d.running.Upstreams() {
		account = account || u.Username != ""
		for _, pattern := range u.Private {
			if u.Name != hubName {
				pattern = u.Name + "/" + pattern
			}
			private = append(private, pattern)
		}
	}
	// A registry doesn't tell which repositories a token may see, except by asking for them.
	if len(private) > 0 {
		d.note("private", "these may be served although they are private: "+strings.Join(private, ", "),
			"whoever reaches the cache reads them; listen_allow narrows that")
	} else if account {
		d.say("private", StatusOK, "private repositories are not served (upstream.private is empty)",
			"a token with the scope \"Public Repo Read-only\" can't see any; hubcache can't find out which scope this one has")
	}
}

// clockSkew is how far the clock may be off.
const clockSkew = 2 * time.Minute

// checkClock looks whether the server's clock agrees with the upstream's. If certificates count as
// not valid, the server has not been told the time, and this host asks.
func (d *Doctor) checkClock(ctx context.Context, u admin.Upstream) {
	var ahead time.Duration
	switch {
	case u.ClockAhead != nil:
		ahead = time.Duration(*u.ClockAhead) * time.Second
	case u.Failure != nil && u.Failure.Kind == "clock":
		theirs, err := askTime(ctx, u.URL)
		if err != nil {
			d.broken("clock", fmt.Sprintf("the certificate of %s is not valid at the time of the server's clock, which is wrong, or the certificate has expired", u.Failure.Host), clockAdvice)
			return
		}
		ahead = time.Since(theirs)
	default:
		return
	}
	if ahead.Abs() > clockSkew {
		way := "ahead"
		if ahead < 0 {
			way = "behind"
		}
		d.broken("clock", fmt.Sprintf("it is off by %v (%s): certificates count as expired or as not valid yet, and last uses are wrong", ahead.Abs().Round(time.Minute), way), clockAdvice)
		return
	}
	if u.Failure != nil && u.Failure.Kind == "clock" {
		d.broken("clock", fmt.Sprintf("it is right, and the certificate of %s has expired or is not valid yet", u.Failure.Host), "whoever runs that host, or what opens https on the way to it, has to renew it")
		return
	}
	if u.Registry == hubName {
		d.ok("clock", "agrees with the one of %s", u.Registry)
	}
}

const clockAdvice = "turn on NTP (timedatectl set-ntp true)"

// askTime asks an upstream for the time. Nothing is sent that needs a trusted connection, and
// nothing but the time is taken from the answer.
func askTime(ctx context.Context, base string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimRight(base, "/")+"/v2/", nil)
	if err != nil {
		return time.Time{}, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}).Do(req)
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	return http.ParseTime(resp.Header.Get("Date"))
}
