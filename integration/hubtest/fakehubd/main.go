// Fakehubd is a fake Docker Hub, to try hubcache without the real one.
//
//	fakehubd --username alice --password-file pat --bandwidth 20MB --image library/big:1=4x64MiB
//
// It serves on three loopback ports (registry, token service, CDN) and prints the command that
// starts hubcache with it as upstream. GET /ledger on the registry's port shows all requests.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "fakehubd:", err)
		os.Exit(1)
	}
}

// errUsage is a wrong command line. The message has been printed already.
var errUsage = errors.New("wrong usage")

// settings are the values of the flags.
type settings struct {
	hub          hubtest.Options
	username     string
	passwordFile string
	certFile     string
	keyFile      string
	caFile       string
	private      []string
	images       []imageFlag
}

// imageFlag is one --image: layers synthetic layers of size bytes each.
type imageFlag struct {
	repository, tag string
	layers          int
	size            int64
}

func parseFlags(args []string, stderr io.Writer) (settings, error) {
	s := settings{hub: hubtest.Options{LedgerPage: true}}
	o := &s.hub
	f := flag.NewFlagSet("fakehubd", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.RegistryAddr, "registry", "127.0.0.1:5100", "listen `address` of the registry")
	f.StringVar(&o.TokenAddr, "token", "127.0.0.1:5101", "listen `address` of the token service")
	f.StringVar(&o.CDNAddr, "cdn", "127.0.0.1:5102", "listen `address` of the CDN")
	f.StringVar(&o.RegistryName, "registry-name", "", "host `name` of the registry, for URLs and certificate")
	f.StringVar(&o.TokenName, "token-name", "", "host `name` of the token service")
	f.StringVar(&o.CDNName, "cdn-name", "", "host `name` of the CDN")
	f.BoolVar(&o.TLS, "tls", false, "serve https, with a certificate by an authority made for this run")
	f.StringVar(&s.certFile, "tls-cert-file", "", "with --tls, use the certificate in this `file`")
	f.StringVar(&s.keyFile, "tls-key-file", "", "`file` with the key of --tls-cert-file")
	f.StringVar(&s.caFile, "ca-file", "", "write the authority's certificate to this `file`")
	f.StringVar(&s.username, "username", "", "`name` of the account; without it there is none")
	f.StringVar(&s.passwordFile, "password-file", "", "`file` with the account's access token")
	f.IntVar(&o.AnonymousLimit, "anonymous-limit", 100, "manifest GETs per window for each address; -1: no limit")
	f.IntVar(&o.AccountLimit, "account-limit", 200, "manifest GETs per window of the account; -1: no limit")
	f.DurationVar(&o.Window, "window", 6*time.Hour, "window of the limits")
	f.DurationVar(&o.Latency, "latency", 0, "delay before every response")
	f.DurationVar(&o.ConnLatency, "conn-latency", 0, "delay before the first response on a connection, in addition to --latency")
	f.Func("bandwidth", "bytes a second per CDN connection, such as 20MB", size(&o.Bandwidth))
	f.Func("total-bandwidth", "bytes a second of the whole CDN", size(&o.TotalBandwidth))
	f.Uint64Var(&o.Seed, "seed", 0, "`number` on which the bytes of layers depend")
	f.Func("private", "`repository` that only the account may read (repeatable)", func(v string) error {
		s.private = append(s.private, v)
		return nil
	})
	f.Func("image", "image to serve, `name:tag=layers x size`, such as library/big:1=4x64MiB (repeatable)", func(v string) error {
		img, err := parseImage(v)
		s.images = append(s.images, img)
		return err
	})
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return s, err
		}
		return s, errUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(stderr, "fakehubd takes no arguments, but %q was given\n", f.Arg(0))
		return s, errUsage
	}
	if problem := s.problem(); problem != "" {
		fmt.Fprintln(stderr, problem)
		return s, errUsage
	}
	return s, nil
}

// problem describes flags that can't be combined; it is empty if there are none.
func (s settings) problem() string {
	switch {
	case (s.username == "") != (s.passwordFile == ""):
		return "--username and --password-file must be used together"
	case (s.certFile == "") != (s.keyFile == ""):
		return "--tls-cert-file and --tls-key-file must be used together"
	case !s.hub.TLS && s.caFile+s.certFile != "":
		return "--ca-file and --tls-cert-file need --tls"
	case s.caFile != "" && s.certFile != "":
		return "--ca-file can't be used with --tls-cert-file, since no authority is made then"
	case s.hub.AnonymousLimit == 0 || s.hub.AccountLimit == 0:
		return "a limit must be at least 1, or -1 for none"
	}
	return ""
}

func size(to *int64) func(string) error {
	return func(v string) error {
		n, err := units.RAMInBytes(v)
		*to = n
		return err
	}
}

// parseImage parses name:tag=layers x size, with or without the spaces. A name without a slash
// means library/name.
func parseImage(v string) (imageFlag, error) {
	name, amount, ok := strings.Cut(v, "=")
	repository, tag, tagged := strings.Cut(name, ":")
	layers, each, sized := strings.Cut(strings.ReplaceAll(amount, " ", ""), "x")
	n, err := strconv.Atoi(layers)
	if !ok || !tagged || !sized || err != nil || n < 0 || repository == "" || tag == "" {
		return imageFlag{}, fmt.Errorf("%q is not name:tag=layers x size", v)
	}
	bytes, err := units.RAMInBytes(each)
	if !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	return imageFlag{repository, tag, n, bytes}, err
}

// run serves until the context ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	if s.username != "" {
		pat, err := os.ReadFile(s.passwordFile)
		if err != nil {
			return err
		}
		s.hub.Accounts = []hubtest.Account{{Username: s.username, PAT: strings.TrimSpace(string(pat)), Private: s.private}}
	}
	if s.certFile != "" {
		cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
		if err != nil {
			return err
		}
		s.hub.Certificate = &cert
	}
	hub := hubtest.New(s.hub)
	for _, repository := range s.private {
		hub.SetPrivate(repository, true)
	}
	images := addImages(hub, s, stderr)
	if err := hub.Start(); err != nil {
		return err
	}
	defer hub.Close()
	if s.caFile != "" {
		pem, _ := hub.Network.CA()
		if err := os.WriteFile(s.caFile, pem, 0o644); err != nil {
			return err
		}
	}
	explain(stdout, hub, s, images)
	<-ctx.Done()
	return nil
}

// addImages adds busybox, a sample for several platforms, and the images of --image and --private.
func addImages(hub *hubtest.Hub, s settings, stderr io.Writer) []*hubtest.Image {
	base, err := hubtest.Busybox()
	if err != nil {
		fmt.Fprintf(stderr, "%v; library/busybox has a synthetic layer and can't be run\n", err)
		base = hubtest.Layer{Size: 1 << 20}
	}
	shell := ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}
	motd := hubtest.Layer{Tar: hubtest.Tar(map[string]string{"etc/motd": "Hello from the fake Hub.\n"})}
	images := []*hubtest.Image{
		hub.AddImage("library/busybox", "latest", hubtest.ImageSpec{
			Layers: []hubtest.Layer{base, motd}, Config: shell, Attestations: true,
		}),
		hub.AddImage("library/busybox", "docker", hubtest.ImageSpec{
			Layers: []hubtest.Layer{base, motd}, Config: shell, Docker: true,
		}),
		hub.AddImage("library/sample", "1", hubtest.ImageSpec{
			Layers: hubtest.Layers(4, 8<<20), Platforms: []string{"linux/amd64", "linux/arm64"},
		}),
	}
	for _, i := range s.images {
		images = append(images, hub.AddImage(i.repository, i.tag, hubtest.ImageSpec{Layers: hubtest.Layers(i.layers, i.size)}))
	}
	for _, repository := range s.private {
		images = append(images, hub.AddImage(repository, "latest", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)}))
	}
	return images
}

// explain prints the addresses, the images and how to use them.
func explain(w io.Writer, hub *hubtest.Hub, s settings, images []*hubtest.Image) {
	fmt.Fprintf(w, "registry  %s\ntoken     %s/token\nCDN       %s\n\n", hub.RegistryURL(), hub.Network.URL(hubtest.Token), hub.Network.URL(hubtest.CDN))
	for _, i := range images {
		fmt.Fprintf(w, "%-32s %9s  %s\n", i.Repository+":"+i.Tag, units.BytesSize(float64(i.Size())), hubtest.Short(i.Digest.String()))
	}
	command := "hubcache serve --upstream " + hub.RegistryURL()
	if s.username != "" {
		command += " --username " + s.username + " --password-file " + s.passwordFile
	}
	if s.caFile != "" {
		command += " --upstream-ca-file " + s.caFile
	}
	fmt.Fprintf(w, "\nStart hubcache with:\n  %s\nShow all requests:\n  curl %s/ledger    (?json for all fields, -X DELETE to empty it)\nStop with Ctrl-C.\n",
		command, hub.RegistryURL())
}
