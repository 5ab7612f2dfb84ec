# `make` alone lists what there is. ARGS passes flags to the program: make up ARGS='--replicas feed=2'
.DEFAULT_GOAL := help
.PHONY: help up build test test-stack deps fmt generate check-nix clean

# where tests/deps puts the tools of check-nix
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

up: ## build and run the whole application; ARGS='--help' shows its flags
	@tests/deps build
	cargo run --release --locked -- up $(ARGS)

build: ## build the program: target/release/microservice-app
	@tests/deps build
	cargo build --release --locked

# `--examples` (there are none) makes cargo doc see the same features of the dependencies as clippy and the tests;
# without it a third of them would be checked once more
test: deps ## every check and test; stops at the first failure
	cargo fmt --check
	$(if $(wildcard tests/check-nix),tests/check-nix)
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib --examples
	cargo test --locked --doc
	cargo test --locked --lib --bins --tests

test-stack: ## the tests with Elasticsearch, Zipkin's dependencies job and cAdvisor, which it fetches
	@tests/deps parts
	cargo test --locked --test it parts:: -- --ignored --test-threads=1 --nocapture

deps: ## install what building and testing need, or say what is missing
	@tests/deps test

fmt: ## format the code
	cargo fmt

# a new definition in src/config/settings, or a new flag in src/cli/flags.rs, wants this
generate: ## rewrite docs/configuration.md and nixos/modules/settings.json
	cargo run --locked --quiet -- settings > target/configuration.md
	cargo run --locked --quiet -- settings --format json > target/settings.json
	mv target/configuration.md docs/configuration.md
	mv target/settings.json nixos/modules/settings.json

check-nix: deps ## check the .nix files
	tests/check-nix

# target/stack holds the process ids by which a running tests/stack is ended
clean: ## remove everything built
	@[ ! -d target/stack ] || STACK_DIR= tests/stack down
	cargo clean
