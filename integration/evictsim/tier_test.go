package main

import (
	"reflect"
	"testing"
	"time"
)

// TestNodesOfATierFetchOnce: what is requested came from somewhere, and with a tier the upstream sends no
// blob twice.
func TestNodesOfATierFetchOnce(t *testing.T) {
	o := soakSite
	o.daemons, o.lasts = 100, 10*time.Minute
	alone := simulate(o)
	o.shared = true
	shared := simulate(o)
	if again := simulate(o); !reflect.DeepEqual(again, shared) {
		t.Error("the same options have another result")
	}
	for name, r := range map[string]tierResult{"alone": alone, "shared": shared} {
		if r.requested != r.fromDisk+r.joined+r.fromPeer+r.fromBucket+r.fromUpstream {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if alone.requested != shared.requested || alone.fromBucket+alone.fromPeer > 0 {
		t.Errorf("alone: %d bytes, shared: %d", alone.requested, shared.requested)
	}
	if shared.fromUpstream != shared.inBucket {
		t.Errorf("%d bytes came from the upstream, and the bucket has %d", shared.fromUpstream, shared.inBucket)
	}
	if shared.fromUpstream >= alone.fromUpstream || shared.heads >= alone.heads || shared.manifests >= alone.manifests {
		t.Errorf("the tier spares nothing: %d and %d bytes", shared.fromUpstream, alone.fromUpstream)
	}
	o.wave = time.Second
	wave := simulate(o)
	if size := wave.requested / int64(o.daemons); wave.fromUpstream != size || wave.heads != 1 || wave.manifests != 1 {
		t.Errorf("of an image of %d bytes the upstream has sent %d", size, wave.fromUpstream)
	}
}
