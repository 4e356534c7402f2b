package dockerhost

import (
	"fmt"
	"strings"
)

// checkRefusals says that a client which can reach the registry by itself goes round what the server
// refuses.
func (d *Doctor) checkRefusals() {
	var settings []string
	for _, u := range d.running.Upstreams() {
		for _, r := range u.Rules {
			if r.Quarantine > 0 {
				settings = append(settings, fmt.Sprintf("quarantine for %s", r.Match))
			}
		}
	}
	if len(d.running.DenyDigests) > 0 {
		settings = append(settings, "deny_digests")
	}
	if len(settings) == 0 {
		return
	}
	const most = 3
	if more := len(settings) - most; more > 0 {
		settings = append(settings[:most], fmt.Sprintf("%d more", more))
	}
	d.note("refusals", fmt.Sprintf("the server refuses images (%s), and Docker and containerd then ask the registry itself", strings.Join(settings, ", ")),
		"let this host reach no registry but the cache: docs/use/quarantine.md")
}
