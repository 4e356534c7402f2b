// Package tiertest has what the tests of the shared tier need: an S3 server in memory that can be
// made to fail in any way, and the real programs, versitygw and redis-server.
package tiertest

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// S3 is a server with one bucket in memory. It checks no signatures.
type S3 struct {
	*httptest.Server

	mu      sync.Mutex // guards what follows
	objects map[string]*Object
	uploads map[string]*upload
	next    int
	fault   func(w http.ResponseWriter, r *http.Request, next http.Handler)
	ledger  []string
}

// Object is an object of an S3.
type Object struct {
	Body   []byte
	Header http.Header // Content-Type and X-Amz-Meta-*
}

type upload struct {
	name  string
	head  http.Header
	parts map[int][]byte
}

// BucketName is the bucket that an S3 has.
const BucketName = "images"

// NewS3 starts a server. It ends with the test.
func NewS3(t testing.TB) *S3 {
	s := &S3{objects: map[string]*Object{}, uploads: map[string]*upload{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s
}

// Fault makes every request go to f, which may answer it or hand it on. nil: no fault.
func (s *S3) Fault(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Requests returns what has been asked since the last call, as "PUT name?part", in order.
func (s *S3) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.ledger
	s.ledger = nil
	return l
}

// Object returns an object, nil if there is none.
func (s *S3) Object(name string) *Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[name]
}

// Set puts an object into the bucket.
func (s *S3) Set(name string, o *Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = o
}

// Names returns the names of all objects, sorted.
func (s *S3) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// Uploads returns how many uploads in parts have begun and not ended.
func (s *S3) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// ServeHTTP answers as S3 does.
func (s *S3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.ledger = append(s.ledger, ledgerLine(r))
	s.mu.Unlock()
	if fault != nil {
		fault(w, r, http.HandlerFunc(s.serve))
		return
	}
	s.serve(w, r)
}

func ledgerLine(r *http.Request) string {
	_, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	line := r.Method + " " + name
	switch q := r.URL.Query(); {
	case q.Get("partNumber") != "":
		line += "?" + q.Get("partNumber")
	case q.Has("uploads"):
		line += "?uploads"
	case q.Has("uploadId"):
		line += "?upload"
	}
	return line
}

func (s *S3) serve(w http.ResponseWriter, r *http.Request) {
	bucket, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	switch {
	case bucket != BucketName:
		Refuse(w, http.StatusNotFound, "NoSuchBucket")
	case r.Method == http.MethodGet && q.Has("location"):
		fmt.Fprint(w, `<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></LocationConstraint>`)
	case r.Method == http.MethodGet && q.Has("uploads"):
		s.listUploads(w, r)
	case r.Method == http.MethodGet && q.Has("list-type"):
		s.list(w, r)
	case q.Has("uploads") || q.Has("uploadId"):
		s.multipart(w, r, name)
	case r.Method == http.MethodPut:
		body, err := payload(r)
		if err != nil {
			Refuse(w, http.StatusBadRequest, "IncompleteBody")
			return
		}
		s.Set(name, &Object{Body: body, Header: kept(r.Header)})
		w.Header().Set("ETag", `"1"`)
	case r.Method == http.MethodDelete:
		s.mu.Lock()
		delete(s.objects, name)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		s.get(w, r, name)
	}
}

func (s *S3) get(w http.ResponseWriter, r *http.Request, name string) {
	o := s.Object(name)
	if o == nil {
		Refuse(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	maps.Copy(w.Header(), o.Header)
	w.Header().Set("ETag", `"1"`)
	http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(o.Body))
}

// kept returns the headers of a request that stay with the object.
func kept(h http.Header) http.Header {
	out := http.Header{"Content-Type": {cmp.Or(h.Get("Content-Type"), "application/octet-stream")}}
	for k, v := range h {
		if strings.HasPrefix(k, "X-Amz-Meta-") {
			out[k] = v
		}
	}
	return out
}

func (s *S3) multipart(w http.ResponseWriter, r *http.Request, name string) {
	id, number := r.URL.Query().Get("uploadId"), r.URL.Query().Get("partNumber")
	var body []byte
	if r.Method == http.MethodPut {
		var err error
		if body, err = payload(r); err != nil {
			Refuse(w, http.StatusBadRequest, "IncompleteBody")
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPost && id == "" {
		s.next++
		id = "upload" + strconv.Itoa(s.next)
		s.uploads[id] = &upload{name: name, head: kept(r.Header), parts: map[int][]byte{}}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
		return
	}
	u := s.uploads[id]
	if u == nil || u.name != name {
		Refuse(w, http.StatusNotFound, "NoSuchUpload")
		return
	}
	switch r.Method {
	case http.MethodPut:
		n, _ := strconv.Atoi(number)
		u.parts[n] = body
		w.Header().Set("ETag", `"`+number+`"`)
	case http.MethodGet:
		u.list(w)
	case http.MethodDelete:
		delete(s.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPost:
		var all []byte
		for _, n := range slices.Sorted(maps.Keys(u.parts)) {
			all = append(all, u.parts[n]...)
		}
		s.objects[name] = &Object{Body: all, Header: u.head}
		delete(s.uploads, id)
		fmt.Fprintf(w, "<CompleteMultipartUploadResult><Bucket>%s</Bucket><Key>%s</Key><ETag>1</ETag></CompleteMultipartUploadResult>", BucketName, name)
	}
}

func (u *upload) list(w http.ResponseWriter) {
	type part struct {
		PartNumber int
		ETag       string
		Size       int
	}
	var l struct {
		XMLName     xml.Name `xml:"ListPartsResult"`
		IsTruncated bool
		Part        []part
	}
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		l.Part = append(l.Part, part{n, strconv.Itoa(n), len(u.parts[n])})
	}
	xml.NewEncoder(w).Encode(l)
}

// Refuse answers with an error of S3.
func Refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>refused by the test</Message></Error>", code)
}

// payload returns the body of a request, which may come in signed chunks.
func payload(r *http.Request) ([]byte, error) {
	if !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return io.ReadAll(r.Body)
	}
	var all []byte
	for br := bufio.NewReader(r.Body); ; {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, n+2) // it ends with CR LF
		if _, err := io.ReadFull(br, chunk); err != nil {
			return nil, err
		}
		if n == 0 {
			return all, nil
		}
		all = append(all, chunk[:n]...)
	}
}
