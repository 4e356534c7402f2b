package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/hubcache/hubcache/integration/tiertest"
)

// random returns n bytes that are the same for the same n.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

// newTest returns a Bucket of a server in memory.
func newTest(t *testing.T) (*Bucket, *tiertest.S3) {
	t.Helper()
	s := tiertest.NewS3(t)
	return connect(t, s.URL), s
}

// part is how long the parts of an upload are in most tests, which need not move many bytes.
const part = 1 << 20

func connect(t *testing.T, endpoint string) *Bucket {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "access"), "someone\n")
	write(t, filepath.Join(dir, "secret"), "verysecret\n")
	b, err := New(Config{
		Endpoint: endpoint, Name: tiertest.BucketName, Prefix: "/some/prefix/", PathStyle: true, Region: "us-east-1",
		AccessKeyFile: filepath.Join(dir, "access"), SecretKeyFile: filepath.Join(dir, "secret"),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.part, b.waits = part, patience{answer: time.Minute, read: time.Minute, write: time.Minute, complete: time.Minute}
	return b
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// read returns all of a part of an object.
func read(t *testing.T, b *Bucket, name string, from, to int64) ([]byte, error) {
	t.Helper()
	body, err := b.Open(t.Context(), name, from, to)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestAnObjectIsWrittenAndReadByParts(t *testing.T) {
	t.Parallel()
	b, s := newTest(t)
	content := random(100_000)
	ctx := t.Context()
	if _, err := b.Stat(ctx, "a/b"); !errors.Is(err, ErrAbsent) {
		t.Fatalf("before it is there: %v", err)
	}
	if _, err := b.Open(ctx, "a/b", 5, -1); !errors.Is(err, ErrAbsent) {
		t.Fatalf("before it is there: %v", err)
	}
	o := Object{Size: int64(len(content)), MediaType: "application/x-layer", Private: true}
	for _, digest := range []string{sum(content), ""} {
		if err := b.Put(ctx, "a/b", o, bytes.NewReader(content), digest); err != nil {
			t.Fatal(err)
		}
	}
	if names := s.Names(); !slices.Equal(names, []string{"some/prefix/a/b"}) {
		t.Errorf("the bucket has %v", names)
	}
	if got, err := b.Stat(ctx, "a/b"); err != nil || got != o {
		t.Errorf("Stat: %+v, %v", got, err)
	}
	for _, span := range [][2]int64{{0, -1}, {0, 1}, {99_999, 100_000}, {5, -1}, {10, 20}} {
		want := content[span[0]:]
		if span[1] >= 0 {
			want = content[span[0]:span[1]]
		}
		body, err := b.Open(ctx, "a/b", span[0], span[1])
		if err != nil {
			t.Fatalf("%v: %v", span, err)
		}
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, want) || body.Object != o || body.From != span[0] || body.To != span[0]+int64(len(want)) {
			t.Errorf("%v: %d bytes, %v, %+v", span, len(got), err, body)
		}
		body.Close()
	}
	if _, err := b.Open(ctx, "a/b", 100_000, -1); !errors.Is(err, ErrRange) {
		t.Errorf("behind its end: %v", err)
	}
	for range 2 {
		if err := b.Delete(ctx, "a/b"); err != nil {
			t.Fatal(err)
		}
	}
	if names := s.Names(); len(names) > 0 {
		t.Errorf("after Delete: %v", names)
	}
}

// interrupted is content that can't be read from at on.
type interrupted struct {
	io.ReaderAt
	at int64
}

var errInterrupted = errors.New("the disk is gone")

func (i interrupted) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > i.at {
		return 0, errInterrupted
	}
	return i.ReaderAt.ReadAt(p, off)
}

// TestAnInterruptedUploadGoesOn: what is there isn't sent again, and nobody sees half an object.
func TestAnInterruptedUploadGoesOn(t *testing.T) {
	t.Parallel()
	b, s := newTest(t)
	content := random(2*part + 1000)
	o := Object{Size: int64(len(content)), MediaType: "x/y"}
	var id string
	begun := func(i string) error { id = i; return nil }
	err := b.Upload(t.Context(), "blob", o, interrupted{bytes.NewReader(content), part + 100_000}, "", begun)
	if err == nil || id == "" {
		t.Fatalf("%v, id %q", err, id)
	}
	if names := s.Names(); len(names) > 0 {
		t.Errorf("half an object is seen: %v", names)
	}
	s.Requests()
	if err := b.Upload(t.Context(), "blob", o, bytes.NewReader(content), id, begun); err != nil {
		t.Fatal(err)
	}
	want := []string{"GET blob?upload", "PUT blob?2", "PUT blob?3", "POST blob?upload"}
	for i := range want {
		want[i] = strings.Replace(want[i], "blob", "some/prefix/blob", 1)
	}
	if got := s.Requests(); !slices.Equal(got, want) {
		t.Errorf("it asked %v", got)
	}
	if got := s.Object("some/prefix/blob"); got == nil || !bytes.Equal(got.Body, content) || got.Header.Get("Content-Type") != "x/y" {
		t.Error("the object is wrong")
	}
	// Of an upload that the server has forgotten, all is sent again.
	if err := b.Upload(t.Context(), "blob", o, bytes.NewReader(content), id, begun); err != nil || id == "upload1" {
		t.Errorf("%v, id %q", err, id)
	}
}

func TestAnUploadCanBeForgotten(t *testing.T) {
	t.Parallel()
	b, s := newTest(t)
	content := random(part + 1)
	err := b.Upload(t.Context(), "blob", Object{Size: part + 1}, bytes.NewReader(content), "", func(string) error { return errInterrupted })
	if !errors.Is(err, errInterrupted) || s.Uploads() != 0 {
		t.Errorf("%v, and %d uploads are left", err, s.Uploads())
	}
	var id string
	err = b.Upload(t.Context(), "blob", Object{Size: part + 1}, interrupted{bytes.NewReader(content), 10}, "", func(i string) error { id = i; return nil })
	if err == nil || s.Uploads() != 1 {
		t.Fatalf("%v, %d uploads", err, s.Uploads())
	}
	for range 2 {
		if err := b.Abort(t.Context(), "blob", id); err != nil || s.Uploads() != 0 {
			t.Errorf("%v, and %d uploads are left", err, s.Uploads())
		}
	}
}

func TestPartsAreNeverTooMany(t *testing.T) {
	t.Parallel()
	const usual = 16 << 20
	for _, size := range []int64{1, usual, usual + 1, 9000 * usual, 9000*usual + 1, 5 << 40} {
		l := (&Bucket{part: usual}).partSize(size)
		if n := (size + l - 1) / l; n > 10_000 || l%usual != 0 || l > 5<<30 {
			t.Errorf("%d bytes: %d parts of %d", size, n, l)
		}
	}
}

// TestASickBucketIsNotTakenForAnEmptyOne: each way of being unwell is an error in time, and never
// ErrAbsent, since then nobody would know that the bucket is unwell.
func TestASickBucketIsNotTakenForAnEmptyOne(t *testing.T) {
	t.Parallel()
	status := func(status int, code string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { tiertest.Refuse(w, status, code) }
	}
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"403":            status(http.StatusForbidden, "AccessDenied"),
		"503":            status(http.StatusServiceUnavailable, "SlowDown"),
		"500":            status(http.StatusInternalServerError, "InternalError"),
		"507":            status(http.StatusInsufficientStorage, "StorageFull"),
		"no such bucket": status(http.StatusNotFound, "NoSuchBucket"),
		"a page of HTML": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, "<html>a proxy speaks</html>")
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusFound)
		},
		"cut": func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) },
		"stuck": func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			select {
			case <-stuck:
			case <-r.Context().Done():
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := newTest(t)
			b.waits = patience{answer: 300 * time.Millisecond, read: 300 * time.Millisecond, write: 300 * time.Millisecond, complete: 300 * time.Millisecond}
			s.Fault(fault)
			content := random(1000)
			_, open := b.Open(t.Context(), "a", 0, -1)
			ranged := func() error { _, err := b.Open(t.Context(), "a", 3, 10); return err }()
			calls := map[string]error{
				"Open": open, "Open of a range": ranged,
				"Put":    b.Put(t.Context(), "a", Object{Size: 1000}, bytes.NewReader(content), sum(content)),
				"Upload": b.Upload(t.Context(), "a", Object{Size: 1000}, bytes.NewReader(content), "", func(string) error { return nil }),
				"Delete": b.Delete(t.Context(), "a"),
				"Abort":  b.Abort(t.Context(), "a", "upload1"),
			}
			if name != "no such bucket" { // an answer to HEAD has no body that says it
				_, calls["Stat"] = b.Stat(t.Context(), "a")
			}
			for call, err := range calls {
				if err == nil || errors.Is(err, ErrAbsent) || strings.Contains(err.Error(), "verysecret") {
					t.Errorf("%s: %v", call, err)
				}
			}
		})
	}
}

// TestABodyThatIsCutIsAnError, and so is one that stalls, or that isn't what was asked for.
func TestABodyThatIsCutIsAnError(t *testing.T) {
	t.Parallel()
	b, s := newTest(t)
	s.Set("some/prefix/a", &tiertest.Object{Body: random(100_000)})
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	half := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100000")
		w.Header().Set("Last-Modified", "Thu, 01 Jan 1970 00:00:01 GMT")
		w.Write(random(100_000)[:50_000])
		w.(http.Flusher).Flush()
	}
	s.Fault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { half(w); panic(http.ErrAbortHandler) })
	if got, err := read(t, b, "a", 0, -1); err == nil || len(got) == 0 {
		t.Errorf("cut: %d bytes and no error", len(got))
	}
	b.waits.read = time.Second
	s.Fault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { half(w); <-stuck })
	if got, err := read(t, b, "a", 0, -1); !errors.Is(err, ErrStalled) || len(got) == 0 {
		t.Errorf("stalled: %d bytes, %v", len(got), err)
	}
	b.waits.read = time.Minute
	for _, header := range []string{"", "bytes 4-9/100000", "bytes 3-10/100000", "bytes 3-2/5", "bytes 3-9/9", "bytes 3-9/*", "pages 3-9/10", "bytes -3-9/10"} {
		s.Fault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Range", header)
			w.Header().Set("Last-Modified", "Thu, 01 Jan 1970 00:00:01 GMT")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, 7))
		})
		if _, err := read(t, b, "a", 3, 10); err == nil {
			t.Errorf("Content-Range %q was believed", header)
		}
	}
	s.Fault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	})
	if _, err := read(t, b, "a", 3, 10); err == nil {
		t.Error("all of it was taken for a part")
	}
}

func TestAReaderMayRest(t *testing.T) {
	t.Parallel()
	b, s := newTest(t)
	s.Set("some/prefix/a", &tiertest.Object{Body: random(1 << 20)})
	body, err := b.Open(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	io.CopyN(io.Discard, body, 1000)
	if body.ReadCloser.(watched).w.timer.Stop() {
		t.Error("the time goes on while nobody reads: its own slowness would be the bucket's")
	}
	if n, err := io.Copy(io.Discard, body); n != 1<<20-1000 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestConfigsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca"), "no certificate")
	for _, c := range []Config{
		{Name: "images"}, {Endpoint: "s3.example.com", Name: "images"}, {Endpoint: "ftp://s3.example.com", Name: "images"},
		{Endpoint: "https://s3.example.com/images", Name: "images"}, {Endpoint: "https://me:verysecret@s3.example.com", Name: "images"},
		{Endpoint: "https://s3.example.com"},
		{Endpoint: "https://s3.example.com", Name: "images", AccessKeyFile: "x"},
		{Endpoint: "https://s3.example.com", Name: "images", CAFile: filepath.Join(dir, "missing")},
		{Endpoint: "https://s3.example.com", Name: "images", CAFile: filepath.Join(dir, "ca")},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "verysecret") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestKeysInFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := &keyFiles{access: filepath.Join(dir, "access"), secret: filepath.Join(dir, "secret")}
	now := time.Now()
	k.CurrentTime = func() time.Time { return now }
	creds := credentials.New(k)
	if _, err := creds.GetWithContext(nil); err == nil {
		t.Error("files that don't exist")
	}
	for i, key := range []string{"one", "two"} {
		write(t, k.access, key+"\n")
		write(t, k.secret, " s"+key)
		v, err := creds.GetWithContext(nil)
		if err != nil || v.AccessKeyID != key || v.SecretAccessKey != "s"+key {
			t.Errorf("read %d: %v", i, err)
		}
		now = now.Add(2 * filesAge)
	}
	write(t, k.secret, "\n")
	if _, err := creds.GetWithContext(nil); err == nil || strings.Contains(err.Error(), "stwo") {
		t.Errorf("an empty file: %v", err)
	}
}

// TestTheStandardChain: the environment first, else what the instance's service says; and nothing is
// an error, not a request without a signature.
func TestTheStandardChain(t *testing.T) {
	for _, v := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(v, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	asked := 0
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		switch {
		case asked < 3:
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodPut:
			io.WriteString(w, "token")
		case strings.HasSuffix(r.URL.Path, "/security-credentials/"):
			io.WriteString(w, "role")
		default:
			fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"instance","SecretAccessKey":"s","Token":"t","Expiration":%q}`, time.Now().Add(time.Hour).Format(time.RFC3339))
		}
	}))
	defer instance.Close()
	c := newChain(&credentials.IAM{Client: instance.Client(), Endpoint: instance.URL})
	creds := credentials.New(c)
	for range 3 {
		if _, err := creds.GetWithContext(nil); !errors.Is(err, errNoCredentials) {
			t.Errorf("with none: %v", err)
		}
	}
	if asked > 2 {
		t.Errorf("the instance's service was asked %d times in a moment", asked)
	}
	c.next, asked = time.Time{}, 3
	if v, err := creds.GetWithContext(nil); err != nil || v.AccessKeyID != "instance" {
		t.Errorf("of the instance: %q, %v", v.AccessKeyID, err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "env")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	creds.Expire()
	if v, err := creds.GetWithContext(nil); err != nil || v.AccessKeyID != "env" {
		t.Errorf("of the environment: %q, %v", v.AccessKeyID, err)
	}
}

func TestAnEndedContextEndsACall(t *testing.T) {
	t.Parallel()
	b, _ := newTest(t)
	why := errors.New("the client has left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := b.Stat(ctx, "a"); !errors.Is(err, why) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := b.Open(ctx, "a", 0, -1); !errors.Is(err, why) {
		t.Errorf("Open: %v", err)
	}
	if err := b.Put(ctx, "a", Object{Size: 1}, bytes.NewReader([]byte("a")), ""); !errors.Is(err, why) {
		t.Errorf("Put: %v", err)
	}
}
