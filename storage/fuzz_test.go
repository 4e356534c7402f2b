package storage

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// FuzzRecord: what can be decoded is encoded to something that decodes to the same. Everything else is
// an error.
func FuzzRecord(f *testing.F) {
	d := digest.FromString("x")
	for _, r := range []record{
		{},
		{fileID: fileID{1, 2, 3}, private: true},
		{fileID: fileID{1 << 40, 2, -3}, manifest: true, mediaType: "application/x", children: []image.Child{{Digest: d, Size: 5, Role: image.RoleConfig}, {Digest: d, Size: 1 << 40, Role: image.RoleLayer}}},
	} {
		f.Add(r.encode())
	}
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := decodeRecord(r.encode())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%x → %+v → %+v, %v", b, r, again, err)
		}
		if r.size < 0 || len(r.children) > image.MaxChildren {
			t.Errorf("%+v", r)
		}
		head, _, err := decodeHead(b)
		if err != nil || head.fileID != r.fileID || head.private != r.private {
			t.Errorf("the head says %+v, %v, the record %+v", head, err, r)
		}
	})
}

// FuzzSmallRecords: the same for links, tags, visibility and times.
func FuzzSmallRecords(f *testing.F) {
	f.Add(Link{true, -1}.encode())
	f.Add(Tag{Digest: digest.FromString("x"), MediaType: "t", Size: 7, Checked: time.Unix(1, 2)}.encode())
	f.Add(Visibility{true, time.Unix(3, 4)}.encode())
	f.Add(encodeTime(time.Unix(5, 6)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLink(b); err == nil {
			if again, err := decodeLink(l.encode()); err != nil || again != l {
				t.Errorf("link %x → %+v → %+v, %v", b, l, again, err)
			}
		}
		if tag, err := decodeTag(b); err == nil {
			if again, err := decodeTag(tag.encode()); err != nil || !again.Checked.Equal(tag.Checked) || again.Digest != tag.Digest || again.MediaType != tag.MediaType || again.Size != tag.Size {
				t.Errorf("tag %x → %+v → %+v, %v", b, tag, again, err)
			}
		}
		if v, err := decodeVisibility(b); err == nil {
			if again, err := decodeVisibility(v.encode()); err != nil || again.Public != v.Public || !again.At.Equal(v.At) {
				t.Errorf("verdict %x → %+v → %+v, %v", b, v, again, err)
			}
		}
		if at, err := decodeTime(b); err == nil {
			if again, err := decodeTime(encodeTime(time.Unix(0, at))); err != nil || again != at {
				t.Errorf("time %x → %d → %d, %v", b, at, again, err)
			}
		}
	})
}

// FuzzRepoPath: whatever the name of a repository, its file is in repos/, and no two repositories have
// the same file.
func FuzzRepoPath(f *testing.F) {
	f.Add("docker.io/library/redis", "docker.io/library/redis.json/x")
	f.Add("docker.io/a.json", "docker.io/a")
	f.Add("docker.io/a.json/b", "docker.io/a.json%/b")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, name := range []string{a, b} {
			for part := range strings.SplitSeq(name, "/") {
				if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "%\x00") {
					return // not a name of a repository
				}
			}
		}
		l := layout("/data")
		p, q := l.repo(a), l.repo(b)
		if !strings.HasPrefix(p, "/data/repos/") || filepath.Clean(p) != p {
			t.Errorf("%q lies at %q", a, p)
		}
		if (p == q) != (a == b) || strings.HasPrefix(p, q+string(os.PathSeparator)) {
			t.Errorf("%q and %q lie at %q and %q", a, b, p, q)
		}
	})
}

// FuzzSpans compares the set of spans with a set of bytes.
func FuzzSpans(f *testing.F) {
	f.Add([]byte{0, 3, 5, 2, 3, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var ss spans
		var model [300]bool
		for i := 0; i+1 < len(ops); i += 2 {
			from, n := int64(ops[i]), int64(ops[i+1]%40)
			ss = ss.add(Span{from, from + n})
			for at := from; at < from+n; at++ {
				model[at] = true
			}
		}
		n := int64(0)
		for at, in := range model {
			if in {
				n++
			}
			if end := ss.end(int64(at)); (end > int64(at)) != in {
				t.Fatalf("%v at %d: %d", ss, at, end)
			}
		}
		missing := int64(0)
		for _, gap := range ss.missing(300) {
			missing += gap.To - gap.From
		}
		if ss.bytes() != n || missing != 300-n || !ss.valid(300) {
			t.Errorf("%v: %d bytes, %d missing, the model has %d", ss, ss.bytes(), missing, n)
		}
	})
}
