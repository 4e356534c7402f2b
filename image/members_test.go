package image

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestMembers: platforms and attestations of an index; odd shapes are left out and fail nothing.
func TestMembers(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	body := strings.NewReplacer("$a", string(a), "$b", string(b), "$c", string(c)).Replace(`{"schemaVersion":2,"manifests":[
		{"digest":"$a","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v7"}},
		{"digest":"$b","size":1,"platform":{"os":"unknown","architecture":"unknown"},"annotations":{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":"$a"}},
		{"digest":"nonsense","size":1},
		{"digest":"$c","size":1,"platform":"linux","annotations":7}]}`)
	want := []Member{
		{Digest: a, Platform: &v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
		{Digest: b, Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Attests: a},
		{Digest: c},
	}
	if diff := cmp.Diff(want, Members([]byte(body))); diff != "" {
		t.Error(diff)
	}
	for _, body := range []string{"", "{}", "[]", `{"manifests":7}`, `{"config":{"digest":"` + string(a) + `"}}`} {
		if m := Members([]byte(body)); m != nil {
			t.Errorf("%s: %v", body, m)
		}
	}
}
