# `make` alone lists what there is. ARGS passes flags to the program: make up ARGS='--replicas feed=2'
.DEFAULT_GOAL := help
.PHONY: help up build test test-interop test-stack test-containers perf fuzz advisories sbom deps fmt generate check-nix clean

# tests/deps puts cargo-deny, deadnix and nixfmt there
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

# where the tests write which checks they skip, and why (tests/it/kit/mod.rs); told at the end
export SKIPPED := $(CURDIR)/target/skipped
say-skipped = [ ! -s $(SKIPPED) ] || { echo "skipped checks:"; sort -u $(SKIPPED) | sed 's/^/  /'; }

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

up: ## build and run the whole application; ARGS='--help' shows its flags
	@tests/deps build
	cargo run --release --locked -- up $(ARGS)

build: ## build the program: target/release/microservice-app
	@tests/deps build
	cargo build --release --locked

# `--examples` (there are none) makes cargo choose the same features of the dependencies as for the tests. Without it
# cargo would check a third of the dependencies once more.
test: deps ## every check and test; stops at the first step that fails
	cargo fmt --check
	$(if $(wildcard tests/check-nix),tests/check-nix)
	cargo deny --locked check -D unmatched-skip -D unnecessary-skip -A license-exception-not-encountered bans licenses sources
	cargo deny --locked --config deny.toml --manifest-path fuzz/Cargo.toml check -A unmatched-skip bans licenses sources
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --lib --bins --examples -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib --examples
	cargo test --locked --doc
	@rm -f $(SKIPPED)
	tests/suite
	cargo bench --locked --quiet --profile dev --bench units -- --test --quiet
	tests/counts
	@$(say-skipped)

test-interop: ## the tests with other people's gRPC clients in their newest versions; fetches them
	@tests/deps interop
	@rm -f $(SKIPPED)
	cargo test --locked --test it interop:: -- --include-ignored
	@$(say-skipped)

test-stack: ## the tests with Elasticsearch, Zipkin's dependencies job and cAdvisor; fetches all three
	@tests/deps parts
	@rm -f $(SKIPPED)
	cargo test --locked --test it parts:: -- --ignored --test-threads=1 --nocapture
	@$(say-skipped)

test-containers: ## the image, compose and Kubernetes, under podman and before a real kube-apiserver; wants root
	@tests/deps containers
	@rm -f $(SKIPPED)
	cargo test --locked --test it containers:: -- --ignored --test-threads=1 --nocapture
	@$(say-skipped)

perf: ## the program side by side with others, and goals; ARGS='--short' takes 4 minutes. Wants a quiet machine
	tests/perf $(ARGS)

fuzz: ## the fuzzers, a minute each; ARGS='--seconds 3600 json_body' runs one for an hour. Fetches cargo-fuzz
	tests/fuzz $(ARGS)

sbom: ## target/sbom.json: the bill of materials of the program, CycloneDX
	@tests/deps sbom
	deploy/sbom target/sbom.json

advisories: deps ## compare the dependencies with the known vulnerabilities; fetches RustSec's database
	cargo deny --locked check advisories
	cargo deny --locked --config deny.toml --manifest-path fuzz/Cargo.toml check advisories

deps: ## install what building and testing need, or say what is missing
	@tests/deps test

fmt: ## format the code
	cargo fmt

# a new definition in src/config/settings, a new flag in src/cli/flags.rs, a change of a route or in deploy/monitoring wants
# this
generate: ## rewrite docs/configuration.md, docs/openapi.json, nixos/modules/settings.json and what deploy/render fills in
	@tests/deps build
	@mkdir -p target
	cargo run --locked --quiet -- settings > target/configuration.md
	cargo run --locked --quiet -- settings --format json > target/settings.json
	cargo run --locked --quiet -- openapi > target/openapi.json
	mv target/configuration.md docs/configuration.md
	mv target/openapi.json docs/openapi.json
	mv target/settings.json nixos/modules/settings.json
	deploy/render

check-nix: deps ## check the .nix files
	tests/check-nix

# `down` finds the processes of a running deploy/stack by the files in target/stack
clean: ## remove everything built
	@[ ! -d target/stack ] || STACK_DIR= deploy/stack down
	cargo clean
