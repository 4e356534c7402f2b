//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// conformanceSuite is the test suite of the distribution specification. It has no releases.
const conformanceSuite = "github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111"

var buildConformance = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "install", conformanceSuite)
	cmd.Dir = labDir // outside of this module, whose go.mod would apply
	cmd.Env = append(os.Environ(), "GOBIN="+labDir, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &exec.Error{Name: conformanceSuite + ": " + string(out), Err: err}
	}
	return filepath.Join(labDir, "conformance"), nil
})

// TestConformance runs the suite in read-only mode with an empty cache and again with the filled
// one. The suite does not check bodies; other tests do.
func TestConformance(t *testing.T) {
	suite, err := buildConformance()
	if err != nil {
		t.Fatal(err)
	}
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	index := hub.AddImage("library/proto", "1", hubtest.ImageSpec{
		Layers: hubtest.Layers(2, 100<<10), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true,
	})
	plain := hub.AddImage("library/proto", "plain", hubtest.ImageSpec{Layers: hubtest.Layers(1, 2<<20), Docker: true})
	addReferrer(t, hub, index)
	manifests := []string{index.Digest.String(), plain.Digest.String()}
	for _, m := range index.Manifests {
		manifests = append(manifests, m.Digest.String())
	}
	var blobs []string
	for _, b := range slices.Concat(index.Blobs(), plain.Blobs()) {
		blobs = append(blobs, b.Digest.String())
	}
	run := func() []string {
		cmd := exec.Command(suite)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "OCI_VERSION=1.1", "OCI_REGISTRY="+s.Addr, "OCI_TLS=disabled", "OCI_REPO1=library/proto",
			"OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
			"OCI_RO_DATA_TAGS=1 plain", "OCI_RO_DATA_MANIFESTS="+strings.Join(manifests, " "),
			"OCI_RO_DATA_BLOBS="+strings.Join(blobs, " "), "OCI_RO_DATA_REFERRERS="+index.Digest.String())
		return conformanceResults(t, cmd)
	}
	cold := run()
	// Each item by HEAD and by GET, the list of tags, referrers, and items that must not exist.
	if got, least := len(cold), 2*(2+len(manifests)+len(blobs))+6; got < least {
		t.Errorf("%d checks passed, want %d or more:\n%s", got, least, strings.Join(cold, "\n"))
	}
	if warm := run(); !slices.Equal(cold, warm) {
		t.Errorf("passed cold:\n%s\npassed warm:\n%s", strings.Join(cold, "\n"), strings.Join(warm, "\n"))
	}
}

func addReferrer(t *testing.T, hub *hubtest.Hub, of *hubtest.Image) {
	t.Helper()
	empty := hub.AddBlob(of.Repository, ocispec.MediaTypeEmptyJSON, []byte("{}"))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example.sbom", Config: empty, Layers: []ocispec.Descriptor{empty}, Subject: &of.Descriptor}
	m.SchemaVersion = 2
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	hub.AddManifest(of.Repository, "", m.MediaType, b)
}

// conformanceResults runs the suite and returns the checks that passed. The test fails if one
// has failed.
//
// It ignores the exit status: in read-only mode the suite panics when it writes its second
// report, results.yaml. The first report, on standard output, is complete by then.
func conformanceResults(t *testing.T, suite *exec.Cmd) (passed []string) {
	t.Helper()
	out, err := suite.Output()
	report, _, found := strings.Cut(string(out), "\nConfiguration:\n")
	if !found || !strings.Contains(string(out), "OCI Conformance Result: Pass\n") {
		t.Fatalf("the suite does not pass: %v\n%s", err, out)
	}
	for line := range strings.Lines(report) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch result {
		case "Pass":
			passed = append(passed, name)
		case "Disabled", "": // pushes and deletes; the heading
		default:
			t.Errorf("%s: %s", name, result)
		}
	}
	return passed
}
