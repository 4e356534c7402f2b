package dockerhost

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
)

// TestDoctorHasTheSharedTierChecked: what is wrong with bucket or leases is broken, and each is named.
func TestDoctorHasTheSharedTierChecked(t *testing.T) {
	for name, row := range map[string]struct {
		state  string
		status int
		answer admin.SharedCheck
		want   map[string]string // status by check
	}{
		"nothing is shared": {state: "off", status: http.StatusOK, want: map[string]string{}},
		"all well":          {"well", http.StatusOK, admin.SharedCheck{Bucket: "well", Lease: "well"}, map[string]string{"bucket": StatusOK, "lease": StatusOK}},
		"no lease":          {"well", http.StatusOK, admin.SharedCheck{Bucket: "well", Lease: "off"}, map[string]string{"bucket": StatusOK}},
		"both broken":       {"well", http.StatusOK, admin.SharedCheck{Bucket: "403", Lease: "gone"}, map[string]string{"bucket": StatusBroken, "lease": StatusBroken}},
		"not allowed":       {"well", http.StatusUnauthorized, admin.SharedCheck{}, map[string]string{"shared": StatusNote}},
		"an older server":   {"well", http.StatusNotFound, admin.SharedCheck{}, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost || r.URL.Path != "/api/v1/shared/check" {
					t.Errorf("%s %s", r.Method, r.URL.Path)
				}
				w.WriteHeader(row.status)
				json.NewEncoder(w).Encode(row.answer)
			}))
			defer server.Close()
			find := adminclient.Finder{Given: strings.TrimPrefix(server.URL, "http://")}
			client, err := find.Find()
			if err != nil {
				t.Fatal(err)
			}
			d := Doctor{client: client}
			d.checkShared(t.Context(), admin.Shared{State: row.state})
			if len(d.findings) != len(row.want) {
				t.Errorf("%+v", d.findings)
			}
			for _, f := range d.findings {
				if row.want[f.Check] != f.Status {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}
