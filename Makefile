# `make` alone lists what there is. ARGS passes flags to the program: make up ARGS='--replicas feed=2'
.DEFAULT_GOAL := help
.PHONY: help up build test test-stack deps fmt check-nix clean

# where tests/deps puts the tools of check-nix
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

# where the tests write which checks they skip, and why (tests/it/kit/mod.rs); told at the end
export SKIPPED := $(CURDIR)/target/skipped
say-skipped = [ ! -s $(SKIPPED) ] || { echo "skipped checks:"; sort -u $(SKIPPED) | sed 's/^/  /'; }

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
	@rm -f $(SKIPPED)
	cargo test --locked --lib --bins --tests
	@$(say-skipped)

test-stack: ## the tests with Elasticsearch, Zipkin's dependencies job and cAdvisor, which it fetches
	@tests/deps parts
	@rm -f $(SKIPPED)
	cargo test --locked --test it parts:: -- --ignored --test-threads=1 --nocapture
	@$(say-skipped)

deps: ## install what building and testing need, or say what is missing
	@tests/deps test

fmt: ## format the code
	cargo fmt

check-nix: deps ## check the .nix files
	tests/check-nix

# target/stack holds the process ids by which a running deploy/stack is ended
clean: ## remove everything built
	@[ ! -d target/stack ] || STACK_DIR= deploy/stack down
	cargo clean
