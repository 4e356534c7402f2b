package admin

import (
	"net/http"

	"github.com/hubcache/hubcache/history"
)

// History is the document of GET /api/v1/history: what was counted in the last hour, day and month.
type History struct {
	Schema int      `json:"schema"`
	Series []Series `json:"series"` // hour, day and month
}

// Series is a time up to now in steps of equal length.
type Series struct {
	Name        string  `json:"name"` // hour, day or month
	StepSeconds int64   `json:"step_seconds"`
	Points      []Point `json:"points"` // one for each step, the oldest first; the last step isn't over yet
}

// Point is what was counted in one step.
type Point struct {
	At       string `json:"at"`       // when the step begins
	Requests int64  `json:"requests"` // for manifests and blobs that were answered without an error
	Hits     int64  `json:"hits"`     // of Requests: answered with what earlier ones had fetched
	Errors   int64  `json:"errors"`   // for manifests and blobs that were answered with an error
	Served   int64  `json:"served"`   // bytes sent to clients
	Hit      int64  `json:"hit"`      // of Served: fetched by earlier requests
	Fetched  int64  `json:"fetched"`  // bytes read from upstreams
}

// CountsOf returns the counters that the history keeps.
func CountsOf(t Totals) history.Counts {
	m, b := t.Requests.Manifest, t.Requests.Blob
	return history.Counts{
		Requests: m.Answered() + b.Answered(), Hits: m.Hits() + b.Hits(), Errors: m.Error + b.Error,
		Served: t.Bytes.Served, Hit: t.Bytes.Hit, Fetched: t.Bytes.Fetched,
	}
}

func (a *admin) history(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, a.historyDocument())
}

func (a *admin) historyDocument() History {
	doc := History{Schema: Schema}
	for _, s := range a.History() {
		series := Series{Name: s.Name, StepSeconds: int64(s.Step.Seconds())}
		for _, p := range s.Points {
			series.Points = append(series.Points, Point{p.At.Format("2006-01-02T15:04:05Z"), p.Requests, p.Hits, p.Errors, p.Served, p.Hit, p.Fetched})
		}
		doc.Series = append(doc.Series, series)
	}
	return doc
}
