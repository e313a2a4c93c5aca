# Verbs of the project; `make help` lists them. Everything built or kept lies in .build, which `make clean` removes.

BUILD := $(CURDIR)/.build
# The HSM pack of the image: attached, embedded, a file of `mkimage hsm-pack`, or a vendor's module of which one is made on the fly.
HSM ?= attached
# With HSM=/path/module.so: its licence text for the image's NOTICE, and configuration files as SRC:DST.
HSM_LICENCE ?=
HSM_CONFIG ?=
# Key set that signs the image (mkimage keys); without one an evaluation set is made in the cache folder.
KEYS ?=
NODE ?= blank
CHAPTER ?= foundation
FUZZTIME ?= 20s
GO := go
export GOFLAGS += -buildvcs=false
# Where tests keep unpacked Debian packages between runs.
export GUARDHOUSE_CACHE ?= $(BUILD)/cache/tests
# Every package is compiled with cgo on or off by what it is: only cmd/hsm needs it.

.PHONY: help demo run test check image deps bench fuzz clean verify

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'

demo: ## boot a node and let a guarded host get its key (CHAPTER=foundation|tpm|rotation|sealed|time|all)
	@board/lab/deps.sh demo
	@$(GO) run ./board/lab/demo -build $(BUILD) -hsm $(HSM) -chapter $(CHAPTER)

run: ## boot one node with its serial line in this terminal (NODE=blank|demo)
	@board/lab/deps.sh run
	@$(GO) build -o $(BUILD)/bin/run ./board/lab/run && exec $(BUILD)/bin/run -build $(BUILD) -hsm $(HSM) -node $(NODE)

.PHONY: secrets
secrets: ## what setup of a node in make run asks for second: make secrets KEY=age1...
	@$(GO) run ./board/lab/run -build $(BUILD) -node $(NODE) -encrypt $(KEY)

image: ## build the boot image into .build/image
	@board/lab/deps.sh image
	@$(GO) run ./cmd/mkimage build -o $(BUILD)/image --cache $(BUILD)/cache --hsm $(HSM) $(addprefix --keys ,$(KEYS)) \
	  $(addprefix --hsm-licence ,$(HSM_LICENCE)) $(addprefix --hsm-config ,$(HSM_CONFIG))

verify: image ## predict the PCRs of the image, as the TPM will show them
	@$(GO) run ./cmd/mkimage measure $(BUILD)/image/guardhouse.efi --keys $(BUILD)/image/keys

test: ## install what is missing, then run every test, the QEMU ones included
	@board/lab/deps.sh test
	@$(MAKE) --no-print-directory lint
	@GUARDHOUSE_CUTS=200 GUARDHOUSE_HOURS=10000 $(GO) run ./board/lab/testrun -budget .ci/budget -tags qemu -timeout 55m

check: lint ## the fast tests: gofmt, vet, staticcheck, layers, unit tests, race; no QEMU
	@$(GO) run ./board/lab/testrun -budget .ci/budget -race -timeout 10m

.PHONY: lint
lint:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt would change: $$bad"; exit 1; }
	@$(GO) vet -tags qemu ./...
	@$(GO) tool staticcheck -tags qemu ./...

bench: ## the numbers of the README, as Go benchmarks for benchstat
	@$(GO) test -run '^$$' -bench . -benchtime 1s -tags qemu -timeout 60m ./...

fuzz: ## every fuzz target for FUZZTIME (20s)
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; \
	  done; done

deps: ## say what this machine needs, and install it
	@board/lab/deps.sh deps

clean: ## remove .build: images, caches, the demo's node
	rm -rf $(BUILD)
