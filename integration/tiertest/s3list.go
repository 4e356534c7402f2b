package tiertest

import (
	"encoding/xml"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// pageSize is how many objects a page of a list has, so that tests meet several.
const pageSize = 7

// list answers with a page of the objects, as ListObjectsV2 does.
func (s *S3) list(w http.ResponseWriter, r *http.Request) {
	type object struct {
		Key          string
		Size         int
		LastModified string
		ETag         string
	}
	var l struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Name                  string
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []object
	}
	q := r.URL.Query()
	l.Name = BucketName
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if !strings.HasPrefix(name, q.Get("prefix")) || name <= q.Get("continuation-token") {
			continue
		}
		if len(l.Contents) == pageSize {
			l.IsTruncated, l.NextContinuationToken = true, l.Contents[pageSize-1].Key
			break
		}
		l.Contents = append(l.Contents, object{name, len(s.objects[name].Body), time.Unix(1, 0).UTC().Format(time.RFC3339), `"1"`})
	}
	xml.NewEncoder(w).Encode(l)
}

// listUploads answers with the uploads in parts that have begun. They did so an hour ago.
func (s *S3) listUploads(w http.ResponseWriter, r *http.Request) {
	type begun struct{ Key, UploadId, Initiated string } //nolint:revive // as S3 has it
	var l struct {
		XMLName xml.Name `xml:"ListMultipartUploadsResult"`
		Bucket  string
		Upload  []begun
	}
	l.Bucket = BucketName
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, u := range s.uploads {
		if strings.HasPrefix(u.name, r.URL.Query().Get("prefix")) {
			l.Upload = append(l.Upload, begun{u.name, id, time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)})
		}
	}
	xml.NewEncoder(w).Encode(l)
}
