// Command lazyclient is a client that mounts images lazily, for the tests: the stargz-snapshotter
// as a library, and what a test needs around it. It is a module of its own, so that its
// dependencies aren't hubcache's.
//
//	lazyclient layer FILE             writes an eStargz layer, and says what it is as JSON
//	lazyclient serve DIR SOCKET HOST  is a snapshotter that reads layers of docker.io from a mirror
//	lazyclient mount SOCKET HOST REF DIR
//	                                  has containerd pull an image lazily, and mounts it
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lazyclient:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := namespaces.WithNamespace(context.Background(), "default")
	switch {
	case len(args) == 2 && args[0] == "layer":
		return writeLayer(args[1])
	case len(args) == 4 && args[0] == "serve":
		return serve(ctx, args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "mount":
		return mountImage(ctx, args[1], args[2], args[3], args[4])
	}
	return fmt.Errorf("unknown arguments %q", args)
}

// files is how many files of 1 MiB the layer has. Their bytes can't be compressed.
const files = 48

func writeLayer(path string) error {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	noise := rand.NewChaCha8([32]byte{1})
	var last [sha256.Size]byte
	for i := range files {
		content := make([]byte, 1<<20)
		noise.Read(content)
		last = sha256.Sum256(content)
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%02d", i), Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := tw.Write(content); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())))
	if err != nil {
		return err
	}
	defer blob.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	hash := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(f, hash.Hash()), blob)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"digest": hash.Digest(), "size": n, "diff_id": blob.DiffID(), "toc": blob.TOCDigest(), "last": fmt.Sprintf("%x", last),
	})
}

func serve(ctx context.Context, dir, socket, host string) error {
	var config service.Config
	config.NoPrometheus = true
	config.ResolverConfig = service.ResolverConfig{Host: map[string]resolver.HostConfig{
		"docker.io": {Mirrors: []resolver.MirrorConfig{{Host: host, Insecure: true}}},
	}}
	snapshotter, err := service.NewStargzSnapshotterService(ctx, dir, &config)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(l)
}

func mountImage(ctx context.Context, socket, host, ref, dir string) error {
	client, err := containerd.New(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	hosts := func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{Host: host, Scheme: "http", Path: "/v2", Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve}}, nil
	}
	image, err := client.Pull(ctx, ref, containerd.WithPullUnpack, containerd.WithPullSnapshotter("stargz"),
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})),
		containerd.WithImageHandlerWrapper(source.AppendDefaultLabelsHandlerWrapper(ref, 0)))
	if err != nil {
		return err
	}
	diffs, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	mounts, err := client.SnapshotService("stargz").View(ctx, "view", identity.ChainID(diffs).String())
	if err != nil {
		return err
	}
	return mount.All(mounts, dir)
}
