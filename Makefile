# Outbox Relay. `make` alone lists what there is to make.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
SINK    ?= kafka
DURATION ?= 10m
BUILDER ?= docker

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Get the servers that the tests and the demo run (PostgreSQL, Kafka, RabbitMQ, PgBouncer)
	@cd e2e && go run ./cmd/deps

.PHONY: deps-all
deps-all: ## Get also what test-chart runs: helm, its tools and a Kubernetes
	@cd e2e && go run ./cmd/deps servers chart

.PHONY: build
build: ## Build bin/relay, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)" -o bin/relay ./cmd/relay

.PHONY: test
test: deps ## Run the tests, against real servers, all but those that test-chart is for
	@./tools/test

.PHONY: test-chart
test-chart: deps-all ## Run the tests of the Helm chart, against a Kubernetes, built once in a quarter of an hour
	@./tools/test chart

.PHONY: soak
soak: deps ## Stress claimers, play each scenario in all of its lanes, each fault, then all at random for DURATION=10m, with new seeds (RELAY_TEST_SEED=… for old ones)
	@cd e2e && go run ./cmd/with-servers --without kafka,rabbitmq -- go test -C .. -count=1 -timeout 0 -v ./internal/source -run TestStressOfClaimers -soak $(DURATION)
	@cd e2e && RELAY_TEST_LANES=all go test -count=1 -timeout 0 -v .
	@cd e2e && RELAY_TEST_LANES=all go test -count=1 -timeout 0 -v ./faults -soak $(DURATION)

.PHONY: lint
lint: ## Run the linters over every module
	@./tools/lint

.PHONY: demo
demo: deps ## Watch two relays being killed and losing nothing (SINK=kafka or SINK=rabbitmq)
	@cd e2e && go run ./cmd/demo --sink $(SINK)

.PHONY: bench
bench: deps ## Measure the relay on this machine, beside Debezium and Kafka's own producer
	@cd bench && go run .

.PHONY: dashboard
dashboard: deps build ## Draw docs/images/dashboard.png anew, from a run of four minutes (installs Chromium)
	@cd e2e && go run ./cmd/dashboard

.PHONY: licences
licences: ## Write THIRD_PARTY_LICENSES, after a change of dependencies
	@cd tools/licences && go run . --root ../..

.PHONY: snapshot
snapshot: deps ## Make all that a release consists of, in dist, and check it
	@./tools/snapshot

.PHONY: image
image: ## Build the image localhost/outbox-relay:dev for this machine (BUILDER=docker or podman)
	@./tools/image $(BUILDER)
