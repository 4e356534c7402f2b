package dockerhost

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// Finding is what one check found. Its JSON form is stable.
type Finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // one of the Status constants
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// The values of Finding.Status.
const (
	StatusOK     = "ok"
	StatusNote   = "note"   // worth knowing; pulls work
	StatusBroken = "broken" // pulls don't work as intended, or nobody can tell; doctor fails
)

// Doctor checks the way from this host's Docker daemon through the cache to Docker Hub. What the
// server runs with, it asks the server.
type Doctor struct {
	Find     adminclient.Finder // finds the server
	Settings *settings.Settings // of this host: where its engine is, and what else is its own
	Host     string             // the flag --host; "" to let Locate find the engine
	Image    string             // a small image that the daemon is made to ask for
	Certs    string             // the daemon's directory with a directory for each registry; "" to find it
	// Containerd is the socket of a containerd, which is looked at where there is no Docker engine; ""
	// is the usual one.
	Containerd string
	Root       string // where the file system with the system's units begins; "" is /

	findings []Finding
	client   *adminclient.Client
	told     *admin.Settings    // by the server; nil: it wasn't
	guessed  []string           // the mirrors of the engine, if the server answers and tells nothing
	running  *settings.Settings // of the server; those of this host if it told none
	certs    string             // Certs, or what was found
	// hostsAlone says that the engine has the mirror in hosts.toml and not in its list.
	hostsAlone bool
	patience   time.Duration // how long the engine may take for an answer; 0 is engineTimeout
}

// Examine makes all checks and returns what they found. It changes nothing on this host. It fails
// when the settings that say where the server is can't be used.
func (d *Doctor) Examine(ctx context.Context) ([]Finding, error) {
	d.findings, d.told, d.guessed, d.running = nil, nil, nil, d.Settings
	var err error
	if d.client, err = d.Find.Find(); err != nil {
		return nil, err
	}
	_, _, down := d.client.Stats(ctx)
	d.askSettings(ctx, down)
	engine := d.findEngine(ctx)
	defer engine.close()
	d.certs = cmp.Or(d.Certs, engine.certs(), defaultCerts)
	if d.told == nil && down == nil && engine != nil {
		// Which mirror is this server is found out when it is asked.
		d.guessed = engine.facts.mirrors
	}
	reached := d.checkPort(ctx, engine)
	sure := d.checkMirror(engine)
	if down != nil {
		d.checkStart()
		if !sure {
			d.noMirror(engine)
		}
		d.checkDirectories()
		return d.findings, nil
	}
	served := reached && d.checkServing(ctx)
	stats, _, err := d.client.Stats(ctx)
	if err != nil {
		d.broken("admin", err.Error(), "look into the server's log (journalctl -u hubcache)")
		return d.findings, nil
	}
	if reached {
		if stats, err = d.askRegistries(ctx, engine == nil, stats); err != nil {
			d.broken("admin", err.Error(), "look into the server's log (journalctl -u hubcache)")
			return d.findings, nil
		}
	}
	for _, u := range stats.Upstreams {
		d.checkUpstream(ctx, u)
	}
	d.checkClients(ctx, engine)
	d.checkPrivate()
	d.checkRefusals()
	d.checkDisk(stats.Store)
	d.checkWarm(stats.Warm)
	d.checkShared(ctx, stats.Shared)
	if !reached && !sure {
		d.noMirror(engine)
	} else if reached {
		d.checkUse(ctx, engine, served, sure)
	}
	if d.told != nil {
		d.checkDirectory("data_dir", string(d.running.DataDir))
	}
	d.checkDirectories()
	return d.findings, nil
}

// say adds a finding.
func (d *Doctor) say(check, status, detail, advice string) {
	d.findings = append(d.findings, Finding{check, status, detail, advice})
}

func (d *Doctor) broken(check, detail, advice string) { d.say(check, StatusBroken, detail, advice) }
func (d *Doctor) note(check, detail, advice string)   { d.say(check, StatusNote, detail, advice) }

// ok adds a finding that needs no advice.
func (d *Doctor) ok(check, format string, args ...any) {
	d.say(check, StatusOK, fmt.Sprintf(format, args...), "")
}

// Broken reports whether one of the findings is that something is broken.
func Broken(findings []Finding) bool {
	for _, f := range findings {
		if f.Status == StatusBroken {
			return true
		}
	}
	return false
}

// askSettings asks the server for what it runs with, unless down says that it doesn't answer.
func (d *Doctor) askSettings(ctx context.Context, down error) {
	if down != nil {
		d.broken("admin", down.Error(), "start hubcache (systemctl start hubcache), or say with --admin where it listens; as root if it is the socket of the package")
		return
	}
	told, err := askServer(ctx, d.client, d.Find)
	if err != nil {
		d.note("admin", "the server answers at "+d.client.String()+", but this user is not told its settings, so those of this host are used: "+err.Error(),
			"run doctor as root, or with --admin unix:/run/hubcache/admin.sock")
		return
	}
	d.told, d.running = &told, restore(told)
	d.ok("admin", "hubcache answers at %s", d.client)
}
