//go:build integration

package integration

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"go.yaml.in/yaml/v3"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

const (
	recipeDir = "packaging/coop-cloud"
	// recipeStack is what abra makes of the app's name, hubcache.example.com.
	recipeStack = "hubcache_example_com"
)

// abraApp is an app of the recipe, put together as abra does: the app's env file, the exports of
// abra.sh and STACK_NAME are the variables, COMPOSE_FILE names the files, and the service app gets
// each variable that it doesn't have yet.
type abraApp struct {
	t     *testing.T
	env   map[string]string
	files []string
}

// newAbraApp uncomments the lines of .env.sample that begin with one of these texts, and appends
// the other lines.
func newAbraApp(t *testing.T, uncomment, lines []string) *abraApp {
	t.Helper()
	sample, err := os.ReadFile(filepath.Join(repositoryRoot, recipeDir, ".env.sample"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(sample)
	for _, begin := range uncomment {
		if !strings.Contains(text, "\n#"+begin) {
			t.Fatalf(".env.sample has no line #%s", begin)
		}
		text = strings.ReplaceAll(text, "\n#"+begin, "\n"+begin)
	}
	env, err := dotenv.UnmarshalBytesWithLookup([]byte(text+strings.Join(lines, "\n")+"\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join(repositoryRoot, recipeDir, "abra.sh"))
	if err != nil {
		t.Fatal(err)
	}
	for _, export := range regexp.MustCompile(`(?m)^export (\w+)=(\S+)$`).FindAllStringSubmatch(string(script), -1) {
		env[export[1]] = export[2]
	}
	env["STACK_NAME"] = recipeStack
	return &abraApp{t: t, env: env, files: strings.Split(env["COMPOSE_FILE"], ":")}
}

// deploy deploys the app as abra does.
func (a *abraApp) deploy(d *dockertest.Daemon) {
	a.t.Helper()
	args := []string{"stack", "deploy", "--resolve-image", "always"}
	for _, file := range a.files {
		args = append(args, "--compose-file", filepath.Join(repositoryRoot, recipeDir, file))
	}
	cmd := d.Command(append(args, "--compose-file", a.exposeAll(), recipeStack)...)
	for name, value := range a.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		a.t.Fatalf("%v\n%s", err, out)
	}
}

// exposeAll writes a compose file that gives the service app all variables of the app that the
// recipe's files don't give it.
func (a *abraApp) exposeAll() string {
	a.t.Helper()
	rest := maps.Clone(a.env)
	for _, file := range a.files {
		for _, line := range readRecipe(a.t, file).Services["app"].Environment {
			name, _, _ := strings.Cut(line, "=")
			delete(rest, name)
		}
	}
	b, err := yaml.Marshal(map[string]any{"version": "3.8", "services": map[string]any{"app": map[string]any{"environment": rest}}})
	if err != nil {
		a.t.Fatal(err)
	}
	file := filepath.Join(a.t.TempDir(), "compose.yml")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// recipeFileOf is what the tests read of a compose file of the recipe.
type recipeFileOf struct {
	Services map[string]struct {
		Image       string
		Environment []string
	}
}

func readRecipe(t *testing.T, file string) (r recipeFileOf) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repositoryRoot, recipeDir, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// checkRecipe deploys the Co-op Cloud recipe on a swarm of two nodes, whose daemons pull through it:
// first with a cache on each node, then with one that they share. The image's archive is loaded on
// both, since the registry that has it can't be reached.
func checkRecipe(t *testing.T, archive string) {
	lab := newRecipeLab(t, archive)
	account := []string{`COMPOSE_FILE="$COMPOSE_FILE:compose.token.yml"`, "SECRET_HUB_TOKEN_VERSION"}
	lines := []string{"HUBCACHE_USERNAME=" + labUser, "HUBCACHE_UPSTREAM_URL=" + lab.hub.RegistryURL(), "HUBCACHE_BUDGET=1GiB", "HUBCACHE_TAGS_TTL=1m"}
	newAbraApp(t, account, lines).deploy(lab.nodes[0])
	lab.waitFor("2/2")
	lab.checkSecret()
	lab.checkPulls()
	for _, node := range lab.nodes {
		if conn, err := net.Dial("tcp", net.JoinHostPort(node.Addr.String(), "5000")); err == nil {
			conn.Close()
			t.Errorf("the cache of %s can be reached from outside", node.Addr)
		}
		// A variable of the env file that the recipe doesn't name is a setting, too.
		if budget := node.Docker("exec", lab.container(node), "hubcache", "config", "show"); !strings.Contains(budget, "environment HUBCACHE_TAGS_TTL") {
			t.Errorf("the settings of the server on %s:\n%s", node.Addr, budget)
		}
	}

	lab.remove()
	shared := net.JoinHostPort(lab.nodes[0].Addr.String(), "5000")
	lines = append(lines, "HUBCACHE_LISTEN=127.0.0.1:5000,"+shared,
		"HUBCACHE_LISTEN_ALLOW=127.0.0.0/8,"+lab.nodes[0].Addr.String()+","+lab.nodes[1].Addr.String())
	lab.nodes[0].Docker("node", "update", "--label-add", "hubcache=true", lab.nodes[0].Docker("info", "--format", "{{.Swarm.NodeID}}"))
	newAbraApp(t, append(account, `COMPOSE_FILE="$COMPOSE_FILE:compose.shared.yml"`), lines).deploy(lab.nodes[0])
	lab.waitFor("1/1")
	lab.useMirror(lab.nodes[1], "http://"+shared)
	lab.checkPulls()
	if _, err := http.Get("http://" + shared + "/v2/"); err == nil {
		t.Error("the shared cache answers an address that is not in HUBCACHE_LISTEN_ALLOW")
	}
}

// recipeLab is a swarm of two nodes that can reach the fake Hub only through a cache: they don't know
// its name.
type recipeLab struct {
	t     *testing.T
	hub   *hubtest.Hub
	nodes []*dockertest.Daemon
	pull  int // how many images were made for checkPulls
}

func newRecipeLab(t *testing.T, archive string) *recipeLab {
	t.Helper()
	network := dockertest.NewNetwork(t)
	listen := net.JoinHostPort(network.Addr.String(), "0")
	lab := &recipeLab{t: t, hub: startHub(t, hubtest.Options{RegistryAddr: listen, TokenAddr: listen, CDNAddr: listen})}
	image := readRecipe(t, "compose.yml").Services["app"].Image
	for range 2 {
		node := dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{"http://127.0.0.1:5000"}})
		node.Docker("load", "--quiet", "--input", archive)
		node.Docker("tag", "hubcache:latest", image)
		lab.nodes = append(lab.nodes, node)
	}
	manager := lab.nodes[0]
	manager.SwarmInit()
	addr := lab.nodes[1].Addr.String()
	lab.nodes[1].Docker("swarm", "join", "--token", manager.Docker("swarm", "join-token", "--quiet", "worker"),
		"--advertise-addr", addr, "--listen-addr", addr, net.JoinHostPort(manager.Addr.String(), "2377"))
	// As abra app secret insert does.
	secret := manager.Command("secret", "create", recipeStack+"_hub_token_v1", "-")
	secret.Stdin = strings.NewReader(labPAT)
	runCommand(t, secret)
	return lab
}

// waitFor waits until this many tasks run. A task counts when its health check has succeeded.
func (lab *recipeLab) waitFor(replicas string) {
	lab.t.Helper()
	manager := lab.nodes[0]
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if manager.Docker("service", "ls", "--format", "{{.Replicas}}") == replicas {
			return
		}
		if time.Now().After(deadline) {
			lab.t.Fatalf("the recipe doesn't run after 2 minutes:\n%s", manager.Docker("stack", "ps", "--no-trunc", recipeStack))
		}
	}
}

// container returns the ID of the recipe's container on a node.
func (lab *recipeLab) container(node *dockertest.Daemon) string {
	return node.Docker("ps", "--quiet", "--filter", "label=com.docker.stack.namespace="+recipeStack)
}

// checkSecret checks that the token's file belongs to the server and that nobody else can read it.
func (lab *recipeLab) checkSecret() {
	lab.t.Helper()
	for _, node := range lab.nodes {
		log := node.Docker("logs", lab.container(node))
		if strings.Contains(log, `"level":"WARN"`) || strings.Contains(log, labPAT) {
			lab.t.Errorf("the log has a warning, or the token:\n%s", log)
		}
	}
	const format = `{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}{{.File.UID}} {{.File.GID}} {{.File.Mode}}{{end}}`
	if got := lab.nodes[0].Docker("service", "inspect", "--format", format, recipeStack+"_app"); got != "65532 65532 -r--------" {
		lab.t.Errorf("the secret's file is %q", got)
	}
}

// checkPulls has each node pull a new image, twice, the second time while the Hub
// ends every connection.
func (lab *recipeLab) checkPulls() {
	lab.t.Helper()
	lab.pull++
	tag := fmt.Sprint(lab.pull)
	runnableImage(lab.t, lab.hub, "library/sample", tag, 2, 1<<20, hubtest.ImageSpec{})
	pull := func(node *dockertest.Daemon) {
		lab.t.Helper()
		node.Docker("pull", "--quiet", "sample:"+tag)
		node.Docker("image", "rm", "sample:"+tag)
	}
	for _, node := range lab.nodes {
		pull(node)
	}
	if lab.hub.Used(labUser) == 0 || lab.hub.Used("") != 0 {
		lab.t.Errorf("%d pulls of the account and %d anonymous ones were counted", lab.hub.Used(labUser), lab.hub.Used(""))
	}
	lab.hub.Inject(hubtest.Match{}, hubtest.Drop())
	for _, node := range lab.nodes {
		pull(node)
	}
	lab.hub.ClearFaults()
}

// useMirror makes a node pull through another cache.
func (lab *recipeLab) useMirror(node *dockertest.Daemon, url string) {
	lab.t.Helper()
	b, err := os.ReadFile(node.ConfigFile)
	if err != nil {
		lab.t.Fatal(err)
	}
	b = []byte(strings.ReplaceAll(string(b), "http://127.0.0.1:5000", url))
	if err := os.WriteFile(node.ConfigFile, b, 0o644); err != nil {
		lab.t.Fatal(err)
	}
	node.Reload()
	for deadline := time.Now().Add(time.Minute); !slices.Contains(strings.Fields(node.Docker("info", "--format", "{{range .RegistryConfig.Mirrors}}{{.}} {{end}}")), url+"/"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			lab.t.Fatal("the daemon doesn't take the new mirror")
		}
	}
}

// remove removes the stack and waits until its containers are gone.
func (lab *recipeLab) remove() {
	lab.t.Helper()
	lab.nodes[0].Docker("stack", "rm", recipeStack)
	for _, node := range lab.nodes {
		for deadline := time.Now().Add(time.Minute); node.Docker("ps", "--all", "--quiet") != ""; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				lab.t.Fatal("containers are left after a minute")
			}
		}
	}
}
