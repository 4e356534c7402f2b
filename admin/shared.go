package admin

import "net/http"

// SharedCheck is the answer to POST /api/v1/shared/check: how an object and a lease of the server's own
// fared. Each is "off", "well", or what is wrong.
type SharedCheck struct {
	Schema int    `json:"schema"`
	Bucket string `json:"bucket"`
	Lease  string `json:"lease"`
}

// checkShared tries what is shared with other nodes.
func (a *admin) checkShared(w http.ResponseWriter, req *http.Request) error {
	c := a.CheckShared(req.Context())
	c.Schema = Schema
	writeJSON(w, http.StatusOK, c)
	return nil
}
