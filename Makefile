# Birthmark: built, shown and tested. `make` alone lists the targets.
#
#   make demo ONESHOT=1      the whole line once, result in demo.json
#   make fuzz FUZZTIME=1m    each fuzz target for that long
#   make soak KILLS=2000     the long way round

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The same commit gives the same bytes, wherever it is built: no paths, no build
# id, no clock but the commit's. An archive without git has its files' time.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y go.mod)
GO_BUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid= \
	-X birthmark/internal/version.version=$(VERSION) \
	-X birthmark/pkg/clock.buildTime=$(SOURCE_DATE_EPOCH)'

# The device speaks HTTP/1.1 only; without Go's HTTP/2 it is half a megabyte smaller, on
# disk and in memory.
DEVICE_BUILD = $(GO_BUILD) -tags nethttpomithttp2

# What `make install` installs as the device binary.
AGENT ?= bin/birthmark
# Debian's spelling of VERSION.
DEBVERSION = $(shell packaging/deb/version.sh '$(VERSION)' $(SOURCE_DATE_EPOCH))
DEBARCHES ?= amd64 arm64 armhf riscv64

FUZZTIME ?= 10s
KILLS    ?= 2000
CUTS     ?= 60
# Mutants: how many (0 is all), and by what they are chosen: each commit tries others.
SAMPLE   ?= 0
SEED     ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo $(SOURCE_DATE_EPOCH))
# The tests under test/ run the real binaries: `make e2e`, after `make build`; those
# under test/qemu a whole device, `make qemu`.
LIBRARY = $$(go list ./... | grep -v '^birthmark/test/')
PROGRAMS = $$(go list ./test/... | grep -v '^birthmark/test/qemu')

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z]+):.* ## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

.PHONY: setup
setup: ## install the Debian packages that are missing
	@test/setup.sh

.PHONY: build
build: ## bin/birthmark (the device) and bin/birthmark-lab (everything else)
	@mkdir -p bin
	$(DEVICE_BUILD) -o bin/birthmark ./cmd/agent
	$(GO_BUILD) -o bin/birthmark-lab ./cmd/lab

.PHONY: fips
fips: ## bin/birthmark-fips: the device binary with Go's certified cryptography
	@mkdir -p bin
	GOFIPS140=v1.0.0 $(DEVICE_BUILD) -o bin/birthmark-fips ./cmd/agent

.PHONY: install
install: ## the device's files into DESTDIR, such as an image's root; after `make build`
	install -D -m 755 "$(AGENT)" "$(DESTDIR)/usr/bin/birthmark"
	install -D -m 644 packaging/birthmark.toml "$(DESTDIR)/usr/lib/birthmark/birthmark.toml"
	install -D -m 644 -t "$(DESTDIR)/usr/lib/systemd/system" packaging/systemd/*.service packaging/systemd/*.socket
	install -D -m 644 -t "$(DESTDIR)/usr/lib/systemd/catalog" packaging/systemd/birthmark.catalog
	install -D -m 644 packaging/systemd/birthmark.sysusers "$(DESTDIR)/usr/lib/sysusers.d/birthmark.conf"
	install -D -m 644 packaging/systemd/birthmark.tmpfiles "$(DESTDIR)/usr/lib/tmpfiles.d/birthmark.conf"
	install -D -m 644 packaging/polkit/birthmark.rules "$(DESTDIR)/usr/share/polkit-1/rules.d/50-birthmark.rules"

.PHONY: deb
deb: ## bin/*.deb: the device's package for amd64, arm64, armhf; a tarball for riscv64
	@for arch in $(DEBARCHES); do case $$arch in armhf) goarch=arm;; *) goarch=$$arch;; esac; \
		echo "deb: $$arch"; mkdir -p out/$$arch; rm -f bin/birthmark_*_$$arch.*; \
		GOARM=7 GOARCH=$$goarch $(DEVICE_BUILD) -o out/$$arch/birthmark ./cmd/agent; \
		packaging/deb/build.sh $$arch '$(DEBVERSION)' $(SOURCE_DATE_EPOCH) bin out/$$arch/birthmark; done

.PHONY: demo
demo: setup build ## a device is born, enrols, speaks and is updated; ONESHOT=1 ends by itself
	@bin/birthmark-lab demo $(if $(ONESHOT),--oneshot --json demo.json)

# A device is built from the package of this very tree, not from one that lies there.
image vm qemu powersoak: DEBARCHES = amd64

.PHONY: image
image: setup build deb ## a device's disk in out/image: Secure Boot, verified root, Birthmark; as root
	@go run ./test/qemu image

.PHONY: vm
vm: setup build deb ## boots that device against a lab, and gives you a root shell in it; as root
	@go run ./test/qemu vm

.PHONY: test
test: ## everything: setup, build, check, fuzzing for 2 s each, the real binaries
	@FUZZTIME=2s SAMPLE=3 VULNDB="$${VULNDB:-none}" test/run.sh setup build fips fmt vet lint race slow rooms sbom vuln repro mutants fuzz deb e2e qemu

.PHONY: check
check: ## gofmt, go vet, staticcheck, tests with the race detector, rooms
	@test/run.sh fmt vet lint race rooms

.PHONY: bench
bench: setup build ## beside other people's programs, against docs/numbers.md; UPDATE=1 writes docs/bench.md
	@go run ./test/bench $(if $(UPDATE),-write docs/bench.md)

.PHONY: sbom
sbom: build ## bin/birthmark.cdx.json: what is linked into both binaries, as CycloneDX
	@go run ./test/sbom -version $(VERSION) -time $(SOURCE_DATE_EPOCH) -o bin/birthmark.cdx.json \
		bin/birthmark bin/birthmark-lab

.PHONY: vuln
vuln: ## known vulnerabilities that the binaries can reach; VULNDB=FOLDER or TAR, see test/vuln
	@mkdir -p out && go build -o out/vuln ./test/vuln && out/vuln ./cmd/agent ./cmd/lab

.PHONY: repro
repro: ## both binaries and the package from two folders and two caches, byte for byte
	@test/repro.sh

.PHONY: mutants
mutants: ## faults that tests must notice, see test/mutants; SAMPLE=3, SEED=…, ONLY=name
	@go run ./test/mutants -n $(SAMPLE) -seed "$(SEED)" -only "$(ONLY)"

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME
	@FUZZTIME=$(FUZZTIME) test/fuzz.sh

.PHONY: soak
soak: setup build ## hours: long fuzzing, repeated races, KILLS kills, CUTS power cuts
	@FUZZTIME=5m test/run.sh racesoak killsoak powersoak fuzz

.PHONY: clean
clean: ## remove what the targets above made here
	rm -rf bin out demo.json

# The steps of `test`, `check` and `soak`.

.PHONY: fmt vet lint race slow rooms e2e qemu racesoak killsoak powersoak
fmt:
	@files=$$(gofmt -l .); \
	test -z "$$files" || { echo "gofmt would change:"; echo "$$files"; exit 1; } >&2
vet: # and what only make deb builds
	@go vet ./...
	@go vet -tags pages ./cmd/agent
lint:
	@go tool staticcheck ./...
	@go tool staticcheck -tags pages ./cmd/agent
# With the race detector these take five times as long, and it finds nothing in them: a
# process of its own is attacked, or an attack is seen to succeed where its rule is left out.
SLOW = ^(TestMemoryOfTheAgentUnderAttack|TestMemoryUnderHostileServers|TestMemoryUnderAttack|TestAttacksSucceedWithoutTheirRule)$$
race:
	@go test -race -timeout 10m -skip '$(SLOW)' $(LIBRARY)
slow: # and another TPM, in C, built in half a minute
	@go test -timeout 10m -run '$(SLOW)' ./cmd/agent ./pkg/telemetry
	@go test -count=1 -v -run 'TestTenThousandOperations|TestEveryRefusalOfEveryCommand' ./pkg/rot/tpm
	@go vet -tags simulator ./pkg/rot/tpm
	@go test -count=1 -tags simulator -run TestSimulator ./pkg/rot/tpm
rooms: # and what documents say; go list runs outside of what the test cache sees
	@go test -count=1 ./internal/rooms ./test/docs ./test/mutants
e2e:
	@go test -count=1 -timeout 20m $(PROGRAMS)
qemu: build deb
	@go test -count=1 -timeout 40m -v -p 1 ./test/qemu/...
racesoak:
	@go test -race -count=20 -timeout 1h -skip '$(SLOW)' $(LIBRARY)
killsoak: build deb
	@KILLS=$(KILLS) SPARSE=5120 go test -count=1 -timeout 2h $(PROGRAMS)
powersoak: build deb
	@CUTS=$(CUTS) LOSSES=500 go test -tags soak -count=1 -timeout 2h -v -run 'TestPowerCuts|TestUpdatePowerCuts|TestEveryWriteOfAFirstBoot' ./test/qemu
	@LOSSES=50 go test -count=1 -timeout 2h -v -run 'TestUpdate$$' ./test/qemu
