package auth

import (
	"testing"
	"time"
)

func TestTokenLifetimeIsBounded(t *testing.T) {
	for given, want := range map[string]time.Duration{
		``: time.Minute, `"300"`: 5 * time.Minute, `300`: 5 * time.Minute, `0`: time.Minute, `-5`: time.Minute,
		`1e300`: time.Hour, `99999999999999999999`: time.Hour, `0.001`: time.Second, `null`: time.Minute, `59.5`: 59500 * time.Millisecond,
	} {
		body := `{"token":"a"}`
		if given != "" {
			body = `{"token":"a","expires_in":` + given + `}`
		}
		k, err := parseToken([]byte(body))
		if err != nil || k.lifetime != want {
			t.Errorf("expires_in %s: %v, %v; want %s", given, k, err, want)
		}
	}
}
