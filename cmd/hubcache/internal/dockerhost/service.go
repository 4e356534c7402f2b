package dockerhost

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The systemd units of the server and of the prune.
const (
	serviceUnit = "hubcache.service"
	pruneUnit   = "hubcache-docker-prune.service"
)

// unitDirs are where systemd looks for units; the first that has one wins.
var unitDirs = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

// credentialStores are where systemd looks for a credential without a path.
var credentialStores = []string{"etc/credstore", "run/credstore", "usr/local/lib/credstore", "usr/lib/credstore"}

// Service is what the systemd unit of a service says of the files that the service can read. It
// is not asked of systemd, which may not run: the unit and its drop-ins are read.
type Service struct {
	root        string // of the file system
	config      string // of --config; "" if the unit names none
	user        string // "" is root
	dynamic     bool   // the user is made when the service starts, and owns no file
	hidesHome   bool   // /home, /root and /run/user are empty for it
	hidesTmp    bool   // /tmp and /var/tmp are its own
	credentials map[string]string
}

// InstalledService reads the unit of the server. root is where the file system begins, "" for /. The
// error is fs.ErrNotExist when there is no unit.
func InstalledService(root string) (*Service, error) { return readUnit(root, serviceUnit) }

// InstalledPrune reads the unit of the prune, as InstalledService does with the server's.
func InstalledPrune(root string) (*Service, error) { return readUnit(root, pruneUnit) }

func readUnit(root, name string) (*Service, error) {
	if root == "" {
		root = "/"
	}
	s := &Service{root: root, credentials: map[string]string{}}
	var unit []byte
	err := fs.ErrNotExist
	for _, dir := range unitDirs {
		if unit, err = os.ReadFile(filepath.Join(root, dir, name)); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	s.read(unit)
	dropIns := map[string]string{} // by name: one in an earlier directory takes the place of a later one's
	for _, dir := range slices.Backward(unitDirs) {
		files, _ := filepath.Glob(filepath.Join(root, dir, name+".d", "*.conf")) // the pattern has no fault
		for _, file := range files {
			dropIns[filepath.Base(file)] = file
		}
	}
	names := make([]string, 0, len(dropIns))
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if body, err := os.ReadFile(dropIns[name]); err == nil {
			s.read(body)
		}
	}
	return s, nil
}

// read takes in what a unit or a drop-in says.
func (s *Service) read(body []byte) {
	lines := bufio.NewScanner(bytes.NewReader(bytes.ReplaceAll(body, []byte("\\\n"), []byte(" "))))
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, ";") {
			continue
		}
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "ExecStart":
			s.config = configOf(value)
		case "User":
			s.user = value
		case "DynamicUser":
			s.dynamic = isTrue(value)
		case "ProtectHome":
			s.hidesHome = isTrue(value) || value == "tmpfs"
		case "PrivateTmp":
			s.hidesTmp = isTrue(value) || value == "disconnected"
		case "LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted":
			if value == "" {
				clear(s.credentials)
				continue
			}
			name, path, _ := strings.Cut(value, ":")
			s.credentials[name] = path
			if strings.HasPrefix(key, "Set") {
				s.credentials[name] = "in the unit"
			}
		}
	}
	if s.dynamic { // which implies both
		s.hidesTmp = true
	}
}

func isTrue(value string) bool {
	return slices.Contains([]string{"1", "yes", "true", "on"}, strings.ToLower(value))
}

// configOf is the file that --config names in a command line.
func configOf(command string) string {
	words := strings.Fields(command)
	for i, word := range words {
		if word == "--config" && i+1 < len(words) {
			return words[i+1]
		}
		if path, ok := strings.CutPrefix(word, "--config="); ok {
			return path
		}
	}
	return ""
}

// Uses reports whether the service is started with that settings file.
func (s *Service) Uses(config string) bool {
	path, err := filepath.Abs(config)
	return err == nil && s.config != "" && path == s.config
}

// credentialFile is the file that a credential comes from; "" if there is none.
func (s *Service) credentialFile(name string) string {
	from, ok := s.credentials[name]
	if !ok {
		return ""
	}
	if filepath.IsAbs(from) {
		return filepath.Join(s.root, from)
	}
	for _, dir := range credentialStores {
		if path := filepath.Join(s.root, dir, name); exists(path) {
			return path
		}
	}
	return ""
}

// exists reports whether there is a file. One that this user may not look for isn't there for it.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// whyNoCredential says why credentialFile has found none.
func (s *Service) whyNoCredential(name string) error {
	if _, ok := s.credentials[name]; !ok {
		known := make([]string, 0, len(s.credentials))
		for credential := range s.credentials {
			known = append(known, credential)
		}
		slices.Sort(known)
		return fmt.Errorf("%s has no credential %q (it has: %s)", serviceUnit, name, orNone(known))
	}
	return fmt.Errorf("%s gets the credential %q from /etc/credstore, and it isn't there", serviceUnit, name)
}

// CheckPasswordFile finds out whether the service can read the file of upstream.password_file. A
// file that isn't on this machine is no fault, unless the service could not see it anyway. A
// relative name is that of a credential. The error says what to do.
func (s *Service) CheckPasswordFile(path string) error {
	if path == "" {
		return nil
	}
	if !filepath.IsAbs(path) {
		if from, ok := s.credentials[path]; ok && (from == "in the unit" || s.credentialFile(path) != "" || !s.canLook()) {
			return nil
		}
		return fmt.Errorf("%w: %s", s.whyNoCredential(path), TokenRecipe)
	}
	if why := s.unreadable(path); why != "" {
		return fmt.Errorf("%s can't read %s: %s. Instead: %s", serviceUnit, path, why, TokenRecipe)
	}
	return nil
}

// CheckKeepFiles finds the files of docker.prune.keep_files that the service of the prune can't
// read. With such a file each of its runs fails. It says what to do.
func (s *Service) CheckKeepFiles(paths []string) (warnings []string) {
	for _, path := range paths {
		if why := s.unreadable(path); filepath.IsAbs(path) && why != "" {
			warnings = append(warnings, fmt.Sprintf("%s can't read %s of docker.prune.keep_files, so that it deletes nothing: %s. Mount its folder where every user may read, such as in /srv (mount --bind), and name it there",
				pruneUnit, path, why))
		}
	}
	return warnings
}

// canLook reports whether this user may look into the folder of credentials.
func (s *Service) canLook() bool {
	_, err := os.ReadDir(filepath.Join(s.root, credentialStores[0]))
	return !errors.Is(err, fs.ErrPermission)
}

// unreadable says why the service can't read a file; "" if it can, or if nobody here can tell.
func (s *Service) unreadable(path string) string {
	if s.hidesHome {
		for _, dir := range []string{"/home", "/root", "/run/user"} {
			if strings.HasPrefix(filepath.Clean(path)+"/", dir+"/") {
				return dir + " is empty for the service"
			}
		}
	}
	if s.hidesTmp {
		for _, dir := range []string{"/tmp", "/var/tmp"} {
			if strings.HasPrefix(filepath.Clean(path)+"/", dir+"/") {
				return "the service has its own " + dir
			}
		}
	}
	if s.user == "" && !s.dynamic { // root
		return ""
	}
	real, err := filepath.EvalSymlinks(filepath.Join(s.root, path))
	if err != nil {
		return ""
	}
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && !s.may(info, 0o1) {
			return fmt.Sprintf("%s is closed to its user (mode %04o)", dir, info.Mode().Perm())
		}
		if dir == s.root || dir == "/" || dir == "." {
			break
		}
	}
	if info, err := os.Stat(real); err == nil && !s.may(info, 0o4) {
		return fmt.Sprintf("it runs as a user of its own, %s, which may not (mode %04o)", s.user, info.Mode().Perm())
	}
	return ""
}

// Exposed reports whether there is a file with this whole path that every user of the machine may
// read.
func Exposed(path string) bool {
	info, err := os.Stat(path)
	return filepath.IsAbs(path) && err == nil && info.Mode().Perm()&0o004 != 0
}

// may reports whether the service's user has a right, 4 to read or 1 to enter. A dynamic user has
// the rights of all others: nothing belongs to it.
func (s *Service) may(info fs.FileInfo, right fs.FileMode) bool {
	mode := info.Mode().Perm()
	if mode&right != 0 || s.dynamic {
		return mode&right != 0
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	u, err := user.Lookup(s.user)
	if err != nil || !ok {
		return true // nobody can tell
	}
	if strconv.Itoa(int(owner.Uid)) == u.Uid {
		return mode&(right<<6) != 0
	}
	groups, err := u.GroupIds()
	return err != nil || slices.Contains(groups, strconv.Itoa(int(owner.Gid))) && mode&(right<<3) != 0
}
