package answer

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

const (
	unknownManifest = `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"7"}}]}`
	denied          = `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`
	unauthorized    = `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`
	page            = "<!DOCTYPE html><html><body>404</body></html>"
)

// TestSubjects: what the hosts of registries are known to answer, and what stands between them
// and us.
func TestSubjects(t *testing.T) {
	header := func(lines ...string) http.Header {
		h := http.Header{}
		for _, line := range lines {
			name, value, _ := strings.Cut(line, ": ")
			h.Add(name, value)
		}
		return h
	}
	jsonType, htmlType := header("Content-Type: application/json"), header("Content-Type: text/html")
	marked := header("Content-Type: application/json; charset=utf-8", "Docker-Distribution-Api-Version: registry/2.0")
	for name, c := range map[string]struct {
		answer Answer
		want   Subject
	}{
		"unknown manifest":                  {Answer{Status: 404, Header: jsonType, Body: []byte(unknownManifest)}, Missing},
		"gone":                              {Answer{Status: 410, Header: jsonType, Body: []byte(unknownManifest)}, Missing},
		"unknown manifest, wrong type":      {Answer{Status: 404, Body: []byte(unknownManifest)}, Missing},
		"denied, hidden as a 404":           {Answer{Status: 404, Header: jsonType, Body: []byte(denied)}, Access},
		"404 page":                          {Answer{Status: 404, Header: htmlType, Body: []byte(page)}, Service},
		"404 without a body":                {Answer{Status: 404}, Service},
		"404 text":                          {Answer{Status: 404, Body: []byte("404 page not found\n")}, Service},
		"404 of another API":                {Answer{Status: 404, Header: jsonType, Body: []byte(`{"message":"Not Found"}`)}, Service},
		"404 with a list of other errors":   {Answer{Status: 404, Header: jsonType, Body: []byte(`{"errors":[{"status":404}]}`)}, Service},
		"404 that is unavailable":           {Answer{Status: 404, Header: jsonType, Body: []byte(`{"errors":[{"code":"UNAVAILABLE"}]}`)}, Service},
		"404 cut off":                       {Answer{Status: 404, Header: jsonType, Body: []byte(unknownManifest[:40])}, Service},
		"denied":                            {Answer{Status: 403, Header: jsonType, Body: []byte(denied)}, Access},
		"firewall's 403":                    {Answer{Status: 403, Header: htmlType, Body: []byte(page)}, Service},
		"403 that is a limit":               {Answer{Status: 403, Header: jsonType, Body: []byte(`{"errors":[{"code":"TOOMANYREQUESTS"}]}`)}, Service},
		"401":                               {Answer{Status: 401, Scheme: "bearer", Header: jsonType, Body: []byte(unauthorized)}, Access},
		"401, insufficient scope":           {Answer{Status: 401, Scheme: "bearer", Problem: "insufficient_scope", Header: jsonType, Body: []byte(unauthorized)}, Access},
		"401, invalid token":                {Answer{Status: 401, Scheme: "bearer", Problem: "invalid_token", Header: jsonType, Body: []byte(unauthorized)}, Token},
		"401, another error":                {Answer{Status: 401, Scheme: "bearer", Problem: "invalid_request", Header: jsonType, Body: []byte(unauthorized)}, Service},
		"401 with an empty body":            {Answer{Status: 401, Scheme: "bearer"}, Access},
		"401 without a challenge":           {Answer{Status: 401, Body: []byte("Unauthorized\n")}, Service},
		"401, JSON of something else":       {Answer{Status: 401, Header: jsonType, Body: []byte(`{"details":"unauthorized"}`)}, Service},
		"401 of a proxy":                    {Answer{Status: 401, Scheme: "basic", Header: htmlType, Body: []byte(page)}, Service},
		"401 of a registry with Basic":      {Answer{Status: 401, Scheme: "basic", Header: jsonType, Body: []byte(unauthorized)}, Access},
		"HEAD, 404, marked":                 {Answer{Head: true, Status: 404, Header: marked}, Missing},
		"HEAD, 403, marked":                 {Answer{Head: true, Status: 403, Header: marked}, Access},
		"HEAD, 404, JSON":                   {Answer{Head: true, Status: 404, Header: jsonType}, Unclear},
		"HEAD, 404, HTML":                   {Answer{Head: true, Status: 404, Header: htmlType}, Unclear},
		"HEAD, 403":                         {Answer{Head: true, Status: 403}, Unclear},
		"HEAD, 401":                         {Answer{Head: true, Status: 401}, Unclear},
		"HEAD, 401 with a challenge":        {Answer{Head: true, Status: 401, Scheme: "bearer"}, Access},
		"HEAD, 401, invalid token":          {Answer{Head: true, Status: 401, Scheme: "bearer", Problem: "invalid_token", Header: marked}, Token},
		"HEAD, 503":                         {Answer{Head: true, Status: 503, Header: marked}, Service},
		"500, though it says unknown":       {Answer{Status: 500, Header: jsonType, Body: []byte(unknownManifest)}, Service},
		"451":                               {Answer{Status: 451, Header: jsonType, Body: []byte(denied)}, Service},
		"429":                               {Answer{Status: 429}, Limit},
		"referrers are not known":           {Answer{From: Referrers, Status: 404, Body: []byte("404 page not found\n")}, Missing},
		"referrers, 404 page":               {Answer{From: Referrers, Status: 404, Header: htmlType, Body: []byte(page)}, Service},
		"referrers, unknown manifest":       {Answer{From: Referrers, Status: 404, Header: jsonType, Body: []byte(unknownManifest)}, Missing},
		"token service, 401":                {Answer{From: TokenService, Status: 401, Header: jsonType, Body: []byte(`{"details":"unauthorized"}`)}, Access},
		"token service, ghcr.io's 403":      {Answer{From: TokenService, Status: 403, Header: jsonType, Body: []byte(denied)}, Access},
		"token service, firewall's 403":     {Answer{From: TokenService, Status: 403, Header: htmlType, Body: []byte(page)}, Service},
		"token service, page called JSON":   {Answer{From: TokenService, Status: 403, Header: jsonType, Body: []byte(page)}, Service},
		"token service, 401, empty":         {Answer{From: TokenService, Status: 401}, Service},
		"token service, 404":                {Answer{From: TokenService, Status: 404, Header: jsonType, Body: []byte(unknownManifest)}, Service},
		"token service, 429":                {Answer{From: TokenService, Status: 429, Body: []byte("slow down")}, Limit},
		"CDN, 404":                          {Answer{From: CDN, Status: 404, Header: jsonType, Body: []byte(unknownManifest)}, Service},
		"CDN, 403":                          {Answer{From: CDN, Status: 403, Body: []byte("<Error><Code>AccessDenied</Code></Error>")}, Service},
		"CDN, 401 with a registry's answer": {Answer{From: CDN, Status: 401, Scheme: "bearer", Problem: "insufficient_scope", Body: []byte(unauthorized)}, Service},
		"CDN, HEAD, 404":                    {Answer{From: CDN, Head: true, Status: 404, Header: marked}, Service},
		"CDN, 429":                          {Answer{From: CDN, Status: 429}, Limit},
	} {
		if got := c.answer.Subject(); got != c.want {
			t.Errorf("%s: about %s; want %s", name, got, c.want)
		}
	}
}

// FuzzSubject: only the API's own answers are about an image or a repository. What makes an
// answer the API's own is said here a second time, in other words than the table's.
func FuzzSubject(f *testing.F) {
	for _, body := range []string{"", page, unknownManifest, denied, unauthorized, "404 page not found\n", `{"errors":[]}`, `{"errors":[{"code":7}]}`, `{"errors":null}`, "null", `"MANIFEST_UNKNOWN"`, `[{"code":"DENIED"}]`, `{"details":"unauthorized"}`, unknownManifest + page} {
		for _, status := range []int{401, 403, 404, 410, 429, 503} {
			for _, place := range []Place{Registry, Referrers, TokenService, CDN} {
				f.Add(uint8(place), status, body == "", "application/json", "registry/2.0", body, "bearer", "invalid_token")
				f.Add(uint8(place), status, body == "", "text/html", "", body, "", "")
			}
		}
	}
	f.Fuzz(func(t *testing.T, place uint8, status int, head bool, contentType, version, body, scheme, problem string) {
		a := Answer{From: Place(place % 4), Head: head, Status: status, Header: http.Header{"Content-Type": {contentType}, "Docker-Distribution-Api-Version": {version}}, Scheme: scheme, Problem: problem}
		if !head {
			a.Body = []byte(body)
		}
		s := a.Subject()
		if s == Unclear && !head {
			t.Errorf("a body that doesn't tell: %+v", a)
		}
		if s == Token && (status != 401 || problem != "invalid_token") {
			t.Errorf("about the token: %+v", a)
		}
		if s != Missing && s != Access {
			return
		}
		if !slices.Contains([]int{401, 403, 404, 410}, status) || a.From == CDN {
			t.Errorf("%d of place %d is about %s", status, a.From, s)
		}
		if s == Missing && (status == 401 || status == 403 || a.From == TokenService) {
			t.Errorf("%d of place %d: something is missing", status, a.From)
		}
		var document any
		_ = json.Unmarshal(a.Body, &document) // nil if it isn't JSON
		_, object := document.(map[string]any)
		again, _ := json.Marshal(document) // without escapes in the names
		plain := strings.ToLower(string(again))
		challenge := scheme == "bearer" && status == 401
		switch {
		case a.From == TokenService && object:
		case a.From == Referrers && status == 404 && strings.TrimSpace(body) == "404 page not found":
		case challenge && (head || len(a.Body) == 0 || problem == "insufficient_scope"):
		case head && strings.HasPrefix(version, "registry/2") && strings.Contains(strings.ToLower(contentType), "json"):
		case object && strings.Contains(plain, "errors") && strings.Contains(plain, "code"):
		default:
			t.Errorf("not the API's own answer is about %s: %+v", s, a)
		}
	})
}
