package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// The account that all caches use, and what clients accept.
const (
	account = "bench"
	pat     = "dckr_pat_bench"
	accept  = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
)

// upstream is the fake Hub with the images that are pulled.
type upstream struct {
	hub   *hubtest.Hub
	token string           // for all images: nginx can't get tokens by itself
	big   *hubtest.Image   // one large layer
	many  *hubtest.Image   // eight layers
	warm  *hubtest.Image   // eight layers, larger in a quick run
	small []*hubtest.Image // 200 (60 in a quick run) of six layers, of which three belong to one of five bases
}

// The Hub is 30 ms away, and a new connection costs two more round trips: TCP and TLS.
const (
	latency     = 30 * time.Millisecond
	connLatency = 60 * time.Millisecond
)

func newUpstream(quick bool) (*upstream, error) {
	hub := hubtest.New(hubtest.Options{
		Accounts:       []hubtest.Account{{Username: account, PAT: pat}},
		AnonymousLimit: -1, AccountLimit: -1,
		CDNAddr: "127.0.0.2:0", // another host, so that clients don't send it the registry's token
		Latency: latency, ConnLatency: connLatency,
		URLLifetime: 24 * time.Hour, TokenLifetime: 24 * time.Hour,
	})
	u := &upstream{hub: hub}
	layer := int64(64 << 20)
	if quick {
		layer = 16 << 20
	}
	add := func(name string, layers ...hubtest.Layer) *hubtest.Image {
		return hub.AddImage("library/"+name, "1", hubtest.ImageSpec{Index: true, Layers: layers})
	}
	u.big = add("big", hubtest.Layers(1, 1<<30)...)
	u.many = add("many", hubtest.Layers(8, layer)...)
	u.warm = u.many
	if quick {
		u.warm = add("warm", hubtest.Layers(8, 64<<20)...)
	}
	images := 200
	if quick {
		images = 60
	}
	for i := range images {
		base := uint64(1 + i%5)
		u.small = append(u.small, add(fmt.Sprintf("small%03d", i),
			hubtest.Layer{Size: 1200 << 10, Seed: base}, hubtest.Layer{Size: 600 << 10, Seed: base}, hubtest.Layer{Size: 200 << 10, Seed: base},
			hubtest.Layer{Size: 400 << 10}, hubtest.Layer{Size: 150 << 10}, hubtest.Layer{Size: 50 << 10}))
	}
	if err := u.holdLargeLayers(); err != nil {
		return nil, err
	}
	if err := hub.Start(); err != nil {
		return nil, err
	}
	var err error
	u.token, err = u.opaqueToken()
	return u, err
}

// holdLargeLayers computes the bytes of the large layers once and keeps them in memory. A CDN
// that computes them while it sends would take CPU time from the server under test.
func (u *upstream) holdLargeLayers() error {
	for _, img := range []*hubtest.Image{u.big, u.many, u.warm} {
		for _, l := range img.Manifests[0].Layers {
			b := make([]byte, l.Size)
			if _, err := u.hub.Blob(l.Digest).ReadAt(b, 0); err != nil && err != io.EOF {
				return err
			}
			u.hub.AddBlobAt(img.Repository, l.MediaType, l.Digest, bytes.NewReader(b), l.Size)
		}
	}
	return nil
}

// opaqueToken gets one token for all images. A JWT that names them would not fit into a
// header.
func (u *upstream) opaqueToken() (string, error) {
	u.hub.Set(func(o *hubtest.Options) { o.OpaqueTokens = true })
	defer u.hub.Set(func(o *hubtest.Options) { o.OpaqueTokens = false })
	query := url.Values{"service": {"registry.docker.io"}}
	for _, img := range append([]*hubtest.Image{u.big, u.many, u.warm}, u.small...) {
		query.Add("scope", "repository:"+img.Repository+":pull")
	}
	return getToken(context.Background(), http.DefaultClient, u.hub.Network.URL(hubtest.Token)+"/token?"+query.Encode())
}

func getToken(ctx context.Context, c *http.Client, from string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return "", err
	}
	req.SetBasicAuth(account, pat)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var reply struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil || reply.Token == "" {
		return "", fmt.Errorf("no token: %s, %w", resp.Status, err)
	}
	return reply.Token, nil
}

// pace is how fast the CDN is, in bytes a second; 0 is unlimited.
type pace struct{ connection, total int64 }

func (u *upstream) set(p pace) {
	u.hub.Set(func(o *hubtest.Options) { o.Bandwidth, o.TotalBandwidth = p.connection, p.total })
}

// quiet waits until the Hub serves no request any more.
func (u *upstream) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return u.hub.Wait(ctx)
}

// files writes the large images into a folder from which a static file server can serve them
// under the paths of the pull API.
func (u *upstream) files(dir string) error {
	for _, img := range []*hubtest.Image{u.big, u.warm} {
		m := img.Manifests[0]
		base := filepath.Join(dir, "files", "v2", img.Repository)
		if err := write(filepath.Join(base, "manifests", img.Tag), img.Bytes); err != nil {
			return err
		}
		if err := write(filepath.Join(base, "manifests", m.Digest.String()), m.Bytes); err != nil {
			return err
		}
		for _, l := range m.Layers {
			f, err := create(filepath.Join(base, "blobs", l.Digest.String()))
			if err != nil {
				return err
			}
			_, err = io.Copy(f, u.hub.Blob(l.Digest))
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func create(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.Create(path)
}

func write(path string, b []byte) error {
	f, err := create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
