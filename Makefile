# hubcache. `make` lists the targets; `make run` and `make test` are all that is needed.

SHELL := /bin/bash
GO    ?= go
# Runs a tool at the version that tools/go.mod names.
TOOL  := $(GO) tool -modfile=tools/go.mod
export CGO_ENABLED := 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## serve on 127.0.0.1:5000 with the embedded defaults, anonymous
	bin/hubcache serve $(ARGS)

.PHONY: build
build: ## build bin/hubcache
	$(GO) build -trimpath -o bin/hubcache ./cmd/hubcache

PREFIX ?= /usr/local

.PHONY: install
install: build ## install program, man pages, alerts and dashboard (PREFIX=/usr/local)
	install -D -m 755 bin/hubcache $(DESTDIR)$(PREFIX)/bin/hubcache
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/hubcache/prometheus packaging/prometheus/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/hubcache/grafana packaging/grafana/*
	rm -rf bin/man && bin/hubcache docs man bin/man
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 bin/man/*.1

# Most of what the integration tests do is to wait for other programs, so the unit tests run beside
# them.
.PHONY: test
test: tools lint ## everything; installs what is missing when run as root
	@$(MAKE) --no-print-directory -j 2 unit integration
	@$(MAKE) --no-print-directory vuln

.PHONY: tools
tools: ## install the programs that the tests need, or say which are missing
	@integration/install-tools

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-clean:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet -tags integration ./...
	$(TOOL) staticcheck -tags integration ./...

# As root, unit tests run in a network namespace that has the loopback interface alone
# (integration/lo-only); tests in that folder check it. Only root can make a namespace, so other
# users run the tests without it, and get a message. LO_ONLY= does the same for a root without
# CAP_SYS_ADMIN.
#
# Some packages wait more than they compute, so more of them run at once than there are cores. The
# limit has room for a machine of a third of the speed that has other work too.
LO_ONLY ?= $(if $(filter 0,$(shell id -u)),1)

UNIT = LO_ONLY=$(LO_ONLY) $(GO) test -p 4 -timeout 30m $(if $(LO_ONLY),-exec '"$(CURDIR)/bin/lo-only"')

.PHONY: unit
unit: ## the tests that need no foreign program, with the race detector
ifneq ($(LO_ONLY),)
	$(GO) build -o bin/lo-only ./integration/lo-only
else
	@echo "unit: the tests run without a network namespace, as this is not root or LO_ONLY is empty"
endif
	CGO_ENABLED=1 $(UNIT) -race -skip "$$(integration/heavy-tests skip)" ./...
	$(UNIT) -run "$$(integration/heavy-tests run)" $$(integration/heavy-tests packages)

.PHONY: integration
integration: build ## real dockerd, swarm, skopeo, podman, containerd, nix, systemd, helm
	$(GO) test -tags integration -count 1 -timeout 90m ./integration/...
	$(GO) -C integration/chart test -count 1 ./...

.PHONY: vuln
vuln: ## known vulnerabilities, where their database can be reached
	@out=$$($(TOOL) govulncheck ./... 2>&1) && echo "$$out" | tail -1 || { \
	  if echo "$$out" | grep -qE 'fetching vulnerabilities|vuln.go.dev|dial tcp|no such host'; \
	  then echo "govulncheck: its database can't be reached from here; not checked"; \
	  else echo "$$out"; exit 1; fi; }

.PHONY: docs
docs: build ## write docs/use/cli.md from the help of the commands
	bin/hubcache docs cli docs/use/cli.md

.PHONY: demo
demo: tools ## the mission in two minutes: a recipe deployed cold, warm, and without hubcache
	$(GO) test -tags integration -count 1 -timeout 20m -run '^TestDemo$$' -v ./integration -args -demo $(if $(DOC),-demo.doc ../docs/evidence/speedup.md)

.PHONY: clients
clients: build ## each client with each fault: builds the newest, writes docs/evidence/clients.md (20 minutes)
	@integration/install-tools clients
	$(GO) test -tags integration -count 1 -timeout 90m -run '^TestClients$$' -v ./integration -args -clients -clients.doc ../docs/evidence/clients.md

.PHONY: soak
soak: tools build ## the long tests: 10 minutes of load, 200 rounds of kill -9, prune with Docker 28
	@integration/install-tools docker28
	HUBCACHE_SOAK=1 $(GO) test -tags integration -timeout 120m -run 'Soak|Kill' -v ./integration/
	HUBCACHE_SOAK=1 $(GO) test -timeout 90m -run Crash -v ./storage/
	CGO_ENABLED=1 $(GO) test -race -timeout 90m -run "$$(integration/heavy-tests run)" $$(integration/heavy-tests packages)

.PHONY: bench
bench: build ## measure beside the peers and write docs/evidence/performance.md (QUICK=1: five minutes; ONLY=stampede,small SERVERS=direct,hubcache,nginx RUNS=2)
	@integration/install-tools bench
	$(GO) run ./integration/bench $(if $(QUICK),-quick) $(if $(ONLY),-only $(ONLY)) $(if $(SERVERS),-servers $(SERVERS)) $(if $(RUNS),-runs $(RUNS))

.PHONY: dist
dist: ## binaries, Debian package, container image, checksums and SBOM in dist/
	packaging/dist

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
