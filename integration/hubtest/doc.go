// Package hubtest is a Docker Hub for tests: a registry, a token service and a CDN, as three
// hosts of their own, with a ledger of every request and faults to order.
//
// # In five minutes
//
// Make a Hub, put an image into it, start it, let the thing under test pull, and read the
// ledger:
//
//	hub := hubtest.New(hubtest.Options{
//		Accounts:  []hubtest.Account{{Username: "alice", PAT: "secret"}},
//		Bandwidth: 20 << 20,
//	})
//	defer hub.Close()
//	img := hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(3, 64<<20)})
//	if err := hub.Start(); err != nil { ... }
//	pull(hub.RegistryURL())
//	if l := hub.Ledger(); l.ManifestGETs() != 1 || l.BlobBytes() != img.Size() {
//		t.Errorf("upstream saw:\n%s", l)
//	}
//
// Without sockets and without waiting, inside a testing/synctest bubble, leave Start away and
// use [Hub.Transport] as the http.RoundTripper: it is real HTTP/1.1 over pipes in memory, and
// latency, bandwidth, expiry and stalls go by the bubble's clock. Make the Hub and its rules
// inside the bubble, and Close it before the bubble ends.
//
// # Content
//
// [Hub.AddImage] makes images: OCI or Docker, of one platform or an index of several, with or
// without attestations, of synthetic layers ([Layers]; any size, no memory, the same digests
// on every run) or of real ones ([Layer].Tar; [Busybox] makes an image that runs).
// [Hub.AddManifest] and [Hub.AddBlob] take any bytes. [Hub.Tag] and [Hub.Untag] move and
// delete tags. A blob is served only under a repository that has it ([Hub.LinkBlob]).
// Repositories are public until [Hub.SetPrivate].
//
// # Behaviour
//
// The registry answers 401 with a challenge until it gets an unexpired token of this Hub for
// that very repository, redirects blobs (307) to signed URLs of the CDN, and counts GETs of
// manifests, not HEADs, against a quota per account or anonymous address; with the quota gone,
// both get 429. A repository that is unknown, or private to others, is 401
// insufficient_scope, also for those who have logged in: their tokens' access claim is empty.
// The CDN refuses a request with Authorization, and [Hub.Violations] tells of it. Beware that
// net/http keeps Authorization on a redirect to another port of the same address, which is
// what three loopback listeners are: Docker Hub's hosts are of two domains. [Options] has the
// variations, and [Hub.Set] changes them on the run.
//
// # Faults
//
// A rule has a [Match] and some faults:
//
//	hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 1}, hubtest.CutAfter(1<<20))
//	hub.Inject(hubtest.Match{Kind: "manifests", Skip: 2}, hubtest.TooManyRequests("Retry-After: 30"))
//	rule := hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Hang())
//	...
//	rule.Release()
//
// Before the headers: [Delay], [Hang], [Reset], [Drop]. Instead of the answer: [Status],
// [TooManyRequests], [HAP429], [HTML], [Raw], [RedirectTo], [RedirectLoop]. In the headers:
// [Chunked], [IgnoreRange], [ExpiredURL], [EditRedirect]. In the body: [CutAfter],
// [ResetAfter], [StallAfter], [FlipByte], [Shorter], [Longer]. An upstream that is down for
// good is a Hub that was closed.
//
// # The ledger
//
// [Hub.Ledger] lists every request with its status and the body bytes that went out. What
// [Ledger.Lines] returns can be compared whole:
//
//	HEAD registry library/redis manifests/7 range=- account=alice → 200
//	GET cdn library/redis blobs/sha256:ab12cd34ef56 range=bytes=0-1023 account=alice → 206
//
// A request is complete in it before its client has the last byte; after a client that left
// early, call [Hub.Wait] first.
package hubtest
