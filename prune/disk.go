package prune

import (
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/disk"
)

// defaultContainerdRoot is the data folder of a containerd that the daemon didn't start
// itself, unless containerd's own configuration has another one.
const defaultContainerdRoot = "/var/lib/containerd"

// Disk says how full one file system is.
type Disk struct {
	Path       string `json:"path"`
	Total      int64  `json:"total_bytes"` // without the blocks that are reserved for root
	Used       int64  `json:"used_bytes"`
	Inodes     int64  `json:"inodes"` // 0 if the file system has no fixed number of them
	InodesUsed int64  `json:"inodes_used"`

	images bool // it has the layers of the images
}

// Full returns the larger of the used shares of space and of inodes, 0 to 1.
func (d Disk) Full() float64 { return max(share(d.Used, d.Total), share(d.InodesUsed, d.Inodes)) }

// Above returns how many bytes have to be freed until at most the share low is used.
func (d Disk) Above(low float64) int64 { return max(0, d.Used-int64(low*float64(d.Total))) }

func share(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// need returns how many bytes of images have to be deleted until no file system with images is
// above the watermark. If inodes are short, that is all of them: how many inodes an image has
// isn't known.
func need(disks []Disk, low float64) (bytes int64) {
	for _, d := range disks {
		switch {
		case !d.images:
		case share(d.InodesUsed, d.Inodes) > low:
			return math.MaxInt64
		default:
			bytes = max(bytes, d.Above(low))
		}
	}
	return bytes
}

// late is space that deletions have freed and that the disks don't show yet. Some file systems
// free in the background, seconds after a deletion.
type late struct {
	before []Disk // when nothing was owed
	freed  int64  // bytes deleted since
}

// expected returns the disks as they will be when they show everything.
func (l late) expected(disks []Disk) []Disk {
	out := slices.Clone(disks)
	for i := range out {
		if out[i].images && i < len(l.before) {
			out[i].Used = max(0, min(out[i].Used, l.before[i].Used-l.freed))
		}
	}
	return out
}

// statDisk measures the file system that path is on.
func statDisk(path string) (Disk, error) {
	s, err := disk.Measure(path)
	if err != nil {
		return Disk{}, err
	}
	used := s.Total - s.Free
	return Disk{
		Path:       path,
		Used:       used,
		Total:      used + s.Available, // as df counts
		Inodes:     s.Inodes,
		InodesUsed: s.Inodes - s.InodesFree,
	}, nil
}

// containerdSocket is the socket of a containerd that the daemon didn't start itself.
const containerdSocket = "/run/containerd/containerd.sock"

// diskPaths returns the folders in which the engine keeps its data, one for each file system.
// The images are in the last one.
func diskPaths(info system.Info) ([]string, error) {
	if info.DockerRootDir == "" {
		return nil, fmt.Errorf("the engine doesn't say where its data root is")
	}
	paths := []string{info.DockerRootDir}
	// A containerd that the daemon started has its data in the data root.
	if containerdStore(info) && (info.Containerd == nil || info.Containerd.Address == "" || info.Containerd.Address == containerdSocket) {
		paths = append(paths, defaultContainerdRoot)
	}
	var out []string
	seen := map[uint64]bool{}
	for i, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			if i > 0 && os.IsNotExist(err) {
				continue
			}
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if !seen[st.Dev] {
			seen[st.Dev] = true
			out = append(out, path)
		}
	}
	return out, nil
}

// containerdStore reports whether the engine keeps its images in containerd.
func containerdStore(info system.Info) bool {
	for _, kv := range info.DriverStatus {
		if kv[0] == "driver-type" && kv[1] == "io.containerd.snapshotter.v1" {
			return true
		}
	}
	return false
}
