# `make` builds everything; `make help` says what else there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

CACHE ?= $(or $(STRAIT_CACHE),$(HOME)/.cache/strait)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# gRPC's own tracing pages bring html/template, and with it every method there is: 9 MB of strait-agent.
TAGS := grpcnotrace

# The toolchain, pinned here and nowhere else.
CLANG := clang-19
CLANG_FORMAT := clang-format-19
GOLANGCI := v2.15.0

export CGO_ENABLED = 0

.PHONY: help build generate verify test test-race fuzz e2e e2e-takeover e2e-upstream e2e-netpol e2e-netpol-brief conformance-cnp cyclonus bench lint format up down image clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the static binaries into bin/
	@mkdir -p bin
	go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

generate: ## rebuild everything generated: BPF objects, their Go side, references
	@tools/need $(CLANG) llvm-19:llvm-strip-19 libbpf-dev:/usr/include/bpf/bpf_helpers.h
	CLANG=$(CLANG) go generate ./...

verify: generate ## prove that what is generated is what is committed
	@git diff --exit-code --stat || { echo 'generated files differ from the committed ones: run "make generate" and commit'; exit 1; }

test: build ## all tests but those in the lab: pure, BPF programs, CNI, network namespaces (root for the last three)
	@tools/need util-linux:nsenter iproute2:ip iputils-ping:ping iptables:iptables-nft nftables:nft gcc libc6-dev:/usr/include/stdlib.h
	go test -count=1 -timeout 30m -p 1 ./... # one package at a time: several count what is lost under traffic
	cd deploy && go test -count=1 ./...
	cd lab && go test -count=1 ./internal/...
	cd bench && go test -count=1 ./...

test-race: ## the pure tests with the race detector
	@tools/need gcc
	CGO_ENABLED=1 go test -race -count=1 ./internal/table ./internal/reconcile ./internal/control/... ./internal/kube/... ./internal/ipam/... ./internal/endpoint/... ./internal/certificate ./internal/observer/... ./internal/relay/...

fuzz: ## run each fuzz target for a moment (FUZZTIME=30s, or 10000x for a number of inputs)
	@tools/fuzz $(or $(FUZZTIME),10000x)

e2e: up ## the lab's tests against a running lab
	cd lab && go test -count=1 -timeout 30m ./e2e/...

e2e-takeover: build bin/lab ## labs with kube-proxy (nftables, iptables), moved to Strait and back under traffic
	for mode in nftables iptables; do \
		export STRAIT_LAB=take-$$mode; \
		bin/lab up --nodes 2 --kube-proxy $$mode; \
		(cd lab && go test -count=1 -timeout 10m -run TestTakeover ./e2e/...) || { bin/lab down; exit 1; }; \
		bin/lab down; \
	done

FOCUS ?= \[sig-network\]
e2e-upstream: up ## Kubernetes' own tests against the lab (FOCUS='\[sig-network\] Services', SKIP=..., SUMMARY=file)
	bin/lab suite --focus '$(FOCUS)' $(if $(SKIP),--skip '$(SKIP)') $(if $(SUMMARY),--summary $(SUMMARY))

# Policy, by the tests of others; what they said last is in docs/conformance.
NETPOL := \[sig-network\] Netpol
BRIEF := default-deny-all|policy based on PodSelector and NamespaceSelector |access on one named port|from updated pod|except clause while egress|using UDP.*Ports|SCTP should support a .default-deny
SUITE := $(if $(SUMMARY),--summary $(SUMMARY))

e2e-netpol: up ## Kubernetes' own tests of NetworkPolicy against the lab, all 50 (SUMMARY=file)
	bin/lab suite --procs 3 --focus '$(NETPOL)' $(SUITE)

e2e-netpol-brief: up ## one of each kind of them, for CI
	bin/lab suite --procs 3 --focus '$(NETPOL).*($(BRIEF))' $(SUITE)

conformance-cnp: up ## the conformance tests of ClusterNetworkPolicy (FOCUS=CNPAdminTierGress, REPORT=file, SUMMARY=file)
	bin/lab suite cluster-network-policy --of $(VERSION) $(if $(filter-out \[sig-network\],$(FOCUS)),--focus '$(FOCUS)') $(if $(REPORT),--report $(REPORT)) $(SUITE)

cyclonus: up ## cyclonus' 112 generated cases of NetworkPolicy (CYCLONUS="--every 10", SUMMARY=file)
	bin/lab suite cyclonus $(CYCLONUS) $(SUITE)

bench: build ## measure against peers (BENCH="--rows 1,2 --quick")
	@tools/need gcc libc6-dev:/usr/include/stdlib.h iptables
	cd bench && go run . $(or $(BENCH),--all)

lint: $(CACHE)/golangci-lint-$(GOLANGCI) ## the short list of linters, for Go and C
	@tools/need $(CLANG_FORMAT)
	$(CLANG_FORMAT) --dry-run --Werror bpf/*.c bpf/lib/*.h
	$< run ./...
	cd deploy && $< run --config ../.golangci.yml ./...
	cd lab && $< run --config ../.golangci.yml ./...
	cd bench && $< run --config ../.golangci.yml ./...

format: ## format Go and C
	gofmt -w cmd internal deploy lab bench
	$(CLANG_FORMAT) -i bpf/*.c bpf/lib/*.h

$(CACHE)/golangci-lint-$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI) (once, some minutes)"
	@mkdir -p $(CACHE)/lint
	GOBIN=$(CACHE)/lint go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	@mv $(CACHE)/lint/golangci-lint $@

bin/lab: FORCE
	@mkdir -p bin
	cd lab && go build -trimpath -o ../bin/lab .

up: build bin/lab ## a real Kubernetes on this machine with Strait as its network (LAB="--nodes 3 --mode vxlan"; STRAIT_LAB=name for a second one)
	bin/lab up $(LAB)

down: bin/lab ## end the lab and leave nothing behind
	bin/lab down

image: build bin/lab ## assemble the container image and print its size
	bin/lab image

clean: ## remove what was built
	rm -rf bin

.PHONY: FORCE
FORCE:
