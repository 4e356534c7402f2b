package prune

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// Engine has the calls of the Docker Engine that prune makes. [*client.Client] implements it.
type Engine interface {
	Info(context.Context, client.InfoOptions) (client.SystemInfoResult, error)
	ImageList(context.Context, client.ImageListOptions) (client.ImageListResult, error)
	ImageInspect(context.Context, string, ...client.ImageInspectOption) (client.ImageInspectResult, error)
	ImageHistory(context.Context, string, ...client.ImageHistoryOption) (client.ImageHistoryResult, error)
	ImageRemove(context.Context, string, client.ImageRemoveOptions) (client.ImageRemoveResult, error)
	ContainerList(context.Context, client.ContainerListOptions) (client.ContainerListResult, error)
	ContainerInspect(context.Context, string, client.ContainerInspectOptions) (client.ContainerInspectResult, error)
	ServiceList(context.Context, client.ServiceListOptions) (client.ServiceListResult, error)
	TaskList(context.Context, client.TaskListOptions) (client.TaskListResult, error)
	DiskUsage(context.Context, client.DiskUsageOptions) (client.DiskUsageResult, error)
	Events(context.Context, client.EventsListOptions) client.EventsResult
}

// Image is one of the host's images.
type Image struct {
	ID        string    // sha256:…
	Parent    string    // ID of the image that it was built on on this host; "" for most
	Tags      []string  // as the Engine lists them: redis:7
	Digests   []string  // redis@sha256:…
	Manifests []string  // digests of the manifests of an index (containerd image store)
	Size      int64     // bytes, shared layers included
	Shared    int64     // bytes that other images have too; -1 if the Engine doesn't tell
	Unique    int64     // bytes that no other image has; Size if that isn't known
	Layers    []Layer   // the lowest first; empty if they aren't known
	Own       int64     // bytes beside the layers, as far as they are worth counting
	Built     time.Time // when its author built it, which says nothing about this host
	Tagged    time.Time // when it was last tagged on this host; zero if unknown
	// Base is true for an image that has a digest and no tag, and on which others are or were
	// built here: "FROM alpine@sha256:…".
	Base bool
	// Unreadable is why the Engine can't show the image; "" if it can. Nothing is known of
	// such an image but its names, its size and its parent.
	Unreadable string

	came map[string]arrival // when it came to each of its repositories; [Uses.observe] fills it in
}

// Use says in which way an image is in use. Its values are those of the JSON report.
type Use string

// The uses that keep an image.
const (
	UseContainer Use = "container"     // a container in any state
	UseMount     Use = "image-mount"   // mounted into a container or service
	UseService   Use = "service"       // the current spec of a service
	UseRollback  Use = "previous-spec" // the spec that a service would roll back to
)

// User is a container or service that uses an image.
type User struct {
	Use  Use
	Name string // of the container or service, for people
	Ref  string // the image: ID, name or digest
}

// Activity is an event that belongs to a deploy or a build.
type Activity struct {
	At   time.Time `json:"at"`
	What string    `json:"what"` // for people: "container web was started"
}

// Snapshot is what the Engine answered at one time.
type Snapshot struct {
	Images []Image
	Users  []User
	// Worker is true on a swarm node that isn't a manager. Such a node doesn't know which
	// services use an image.
	Worker bool
	// Busy says, for people, what swarm is doing at the moment; empty if it does nothing.
	Busy []string
	// Activities are what containers and images themselves show.
	Activities []Activity
	// Containerd is true for containerd's image store.
	Containerd bool

	restarts restarts
}

// TakeSnapshot asks the Engine for everything that [Decide] needs. An image or container
// that disappears meanwhile is no error. Every other error is returned, and then nothing
// may be deleted.
func TakeSnapshot(ctx context.Context, e Engine) (Snapshot, error) {
	s := Snapshot{restarts: newRestarts()}
	// Images first: an image that arrives later is then not in the snapshot at all.
	if err := s.addImages(ctx, e); err != nil {
		return Snapshot{}, err
	}
	if err := s.addUsers(ctx, e); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

func (s *Snapshot) addImages(ctx context.Context, e Engine) error {
	list, err := e.ImageList(ctx, client.ImageListOptions{All: true, SharedSize: true, Manifests: true})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	missing := false
	for _, item := range list.Items {
		img := Image{
			ID: item.ID, Parent: item.ParentID, Size: item.Size, Shared: item.SharedSize, Unique: item.Size,
			Built: time.Unix(item.Created, 0),
		}
		img.Tags, img.Digests = names(item.RepoTags, item.RepoDigests)
		if item.SharedSize > 0 { // -1: not computed
			img.Unique = max(0, item.Size-item.SharedSize)
		}
		if item.Descriptor != nil {
			img.Manifests = append(img.Manifests, item.Descriptor.Digest.String())
		}
		for _, m := range item.Manifests {
			img.Manifests = append(img.Manifests, m.Descriptor.Digest.String())
		}
		details, err := e.ImageInspect(ctx, item.ID)
		switch {
		case err == nil:
			img.Tagged = details.Metadata.LastTagTime
			img.Layers = chains(details.RootFS.Layers)
		case cerrdefs.IsInternal(err), cerrdefs.IsNotFound(err):
			img.Unreadable = err.Error()
			missing = missing || cerrdefs.IsNotFound(err)
		default:
			return fmt.Errorf("inspect image %s: %w", item.ID, err)
		}
		s.addActivity(img.Tagged, "image "+label(img)+" was tagged")
		s.Images = append(s.Images, img)
	}
	slices.SortFunc(s.Images, func(a, b Image) int { return cmp.Compare(a.ID, b.ID) }) // so that two runs see the same
	if missing {
		return s.dropRemoved(ctx, e)
	}
	return nil
}

// dropRemoved drops those of the images that the Engine couldn't show which are gone. One that is
// still in its list is damaged.
func (s *Snapshot) dropRemoved(ctx context.Context, e Engine) error {
	list, err := e.ImageList(ctx, client.ImageListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	s.Images = slices.DeleteFunc(s.Images, func(img Image) bool {
		return img.Unreadable != "" && !slices.ContainsFunc(list.Items, func(item image.Summary) bool { return item.ID == img.ID })
	})
	return nil
}

// addUsers fills in everything but the images.
func (s *Snapshot) addUsers(ctx context.Context, e Engine) error {
	info, err := e.Info(ctx, client.InfoOptions{})
	if err != nil {
		return fmt.Errorf("ask the engine about itself: %w", err)
	}
	s.Containerd = containerdStore(info.Info)
	if err := s.addContainers(ctx, e); err != nil {
		return err
	}
	switch state := info.Info.Swarm.LocalNodeState; {
	case info.Info.Swarm.ControlAvailable:
		return s.addSwarm(ctx, e)
	case state == swarm.LocalNodeStateInactive || state == "":
		return nil
	case state == swarm.LocalNodeStateActive:
		s.Worker = true
		return nil
	default:
		return fmt.Errorf("the swarm is %s, so it isn't known which images its services use", state)
	}
}

func (s *Snapshot) addContainers(ctx context.Context, e Engine) error {
	var all []container.InspectResponse
	defer func() { s.addStarts(all) }()
	list, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, item := range list.Items {
		name := containerName(item.Names, item.ID)
		use := func(kind Use, ref string) { s.Users = append(s.Users, User{kind, name, ref}) }
		use(UseContainer, item.ImageID)
		use(UseContainer, item.Image)
		if item.ImageManifestDescriptor != nil {
			use(UseContainer, item.ImageManifestDescriptor.Digest.String())
		}
		// Only inspect shows the image mounts of a container that was never started.
		details, err := e.ContainerInspect(ctx, item.ID, client.ContainerInspectOptions{})
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("inspect container %s: %w", name, err)
		}
		c := details.Container
		all = append(all, c)
		if c.HostConfig != nil {
			for _, ref := range mountedImages(c.HostConfig.Mounts) {
				use(UseMount, ref)
			}
		}
		for _, m := range c.Mounts {
			if m.Type == mount.TypeImage {
				use(UseMount, m.Name)
				use(UseMount, m.Source)
			}
		}
	}
	return nil
}

// addStarts notes when the containers were created and started, unless that was a restart.
func (s *Snapshot) addStarts(containers []container.InspectResponse) {
	if s.restarts.ended == nil {
		s.restarts = newRestarts()
	}
	for _, c := range containers {
		s.restarts.addContainer(c)
	}
	for _, c := range containers {
		service, image := "", ""
		if c.Config != nil {
			service, image = c.Config.Labels[serviceLabel], c.Config.Image
		}
		name := containerName([]string{c.Name}, c.ID)
		if at, err := time.Parse(time.RFC3339Nano, c.Created); err == nil && !s.restarts.isRestart("", service, image) {
			s.addActivity(at, "container "+name+" was created")
		}
		if c.State == nil || s.restarts.isRestart(c.ID, service, image) {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, c.State.StartedAt); err == nil {
			s.addActivity(at, "container "+name+" was started")
		}
	}
}

// addActivity notes an activity.
func (s *Snapshot) addActivity(at time.Time, what string) {
	if !at.IsZero() {
		s.Activities = append(s.Activities, Activity{at, what})
	}
}

// names returns the tags and the digests of an image, without the <none>:<none> of one that has
// no name. containerd's store lists a name with a digest among the tags too, and the bare
// digest of an image without content for this platform.
func names(repoTags, repoDigests []string) (tags, digests []string) {
	for _, ref := range slices.Concat(repoTags, repoDigests) {
		switch {
		case strings.HasPrefix(ref, "<none>"), strings.HasPrefix(ref, "sha256:"):
		case !strings.Contains(ref, "@"):
			tags = append(tags, ref)
		case !slices.Contains(digests, ref):
			digests = append(digests, ref)
		}
	}
	return tags, digests
}

// label returns a short name of img for people.
func label(img Image) string {
	switch {
	case len(img.Tags) > 0:
		return img.Tags[0]
	case len(img.Digests) > 0:
		return img.Digests[0]
	default:
		return img.ID
	}
}

func containerName(names []string, id string) string {
	if len(names) > 0 {
		return strings.TrimPrefix(names[0], "/")
	}
	return id
}
