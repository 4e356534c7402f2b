// Package hubtest is a Docker Hub for tests: a registry, a token service and a CDN, each a
// host of its own. It keeps a ledger of all requests, and a test can inject faults.
//
// # In five minutes
//
// Make a Hub, add an image, start it, let the program under test pull, and read the ledger:
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
// Inside a testing/synctest bubble, don't call Start, and use [Hub.Transport] as the
// http.RoundTripper: it is real HTTP/1.1 over pipes in memory, without sockets. Latency,
// bandwidth, expiry and stalls follow the bubble's clock, so no test waits for them. Make the
// Hub and its rules inside the bubble, and Close it before the bubble ends.
//
// # Content
//
// [Hub.AddImage] makes images: OCI or Docker, of one platform or an index of several, with or
// without attestations, of synthetic layers ([Layers]; any size, no memory, the same digests
// on every run) or of real ones ([Layer].Tar; [Busybox] makes an image that runs).
// [Hub.AddManifest] and [Hub.AddBlob] take any bytes. [Hub.Tag] moves tags, and [Hub.Untag]
// deletes them. A blob is served only under a repository that has it ([Hub.LinkBlob]).
// Repositories are public until [Hub.SetPrivate].
//
// # Behaviour
//
// The registry answers 401 with a challenge until it gets an unexpired token of this Hub for
// the repository in question. It redirects requests for blobs (307) to signed URLs of the
// CDN. It counts GETs of manifests, not HEADs, against a quota for each account or anonymous
// address; when the quota is used up, it answers both with 429. It answers 401
// insufficient_scope for a repository that does not exist or that the account may not read;
// the access claim of the account's token is empty then.
//
// The CDN refuses a request with Authorization, and [Hub.Violations] reports it. net/http
// keeps Authorization on a redirect to another port of the same address, as the three
// listeners on loopback are; Docker Hub's hosts have different addresses and domains.
//
// [Options] has variations of all this, and [Hub.Set] changes them while the Hub runs.
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
// Before the headers: [Delay], [Hang], [Reset], [Drop]. Instead of the response: [Status],
// [TooManyRequests], [HAP429], [HTML], [Raw], [RedirectTo], [RedirectLoop]. In the headers:
// [Chunked], [IgnoreRange], [ExpiredURL], [EditRedirect]. In the body: [CutAfter],
// [ResetAfter], [StallAfter], [FlipByte], [Shorter], [Longer]. To test with an upstream that
// is down, close the Hub.
//
// # The ledger
//
// [Hub.Ledger] lists all requests with their status and the number of body bytes sent. A test
// can compare all of [Ledger.Lines] with what it expects:
//
//	HEAD registry library/redis manifests/7 range=- account=alice → 200
//	GET cdn library/redis blobs/sha256:ab12cd34ef56 range=bytes=0-1023 account=alice → 206
//
// A request is complete in the ledger before its client has the last byte. After a client
// that left early, call [Hub.Wait] first.
//
// # No network but loopback
//
// Tests must not reach the internet. [Dial] and [LoopbackOnly] refuse all addresses that are
// not loopback; a test that makes an http.Transport of its own uses one of them. As root,
// `make unit` runs the tests in a network namespace in addition (integration/lo-only).
package hubtest
