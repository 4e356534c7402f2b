package admin

import (
	"errors"
	"net/http/httptest"
	"testing"
)

// TestStreamSaysHowItEnds: every event is a line, and the last says whether all went well.
func TestStreamSaysHowItEnds(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "{\"n\":1}\n{\"n\":2}\n{\"done\":true,\"error\":null}\n"},
		{errors.New("two\nlines"), "{\"n\":1}\n{\"n\":2}\n{\"done\":true,\"error\":\"two\\nlines\"}\n"},
	} {
		w := httptest.NewRecorder()
		s := newStream(w)
		for n := 1; n <= 2; n++ {
			if err := s.send(map[string]int{"n": n}); err != nil || !w.Flushed {
				t.Errorf("send: %v, flushed %v", err, w.Flushed)
			}
		}
		s.end(c.err)
		if got := w.Body.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
