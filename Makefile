# Two commands do everything on a fresh Debian machine with Rust: `make demo` and `make test`.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# RocksDB's archive is built once per machine and linked by every build (docs/decisions/0002-rocksdb-archive.md).
# Only recipes that compile expand this; the assignment stands apart from `export` so that its failure stops the recipe.
CARGO = ROCKSDB_LIB_DIR="$$(.ci/rocksdb-archive)" && export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1 && cargo

# Where `make library` puts the C library.
PREFIX ?= $(CURDIR)/target/library
LIBDIR ?= $(PREFIX)/lib
# `release`, or `dev` for a library that is built quickly and is slow.
PROFILE ?= release
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
# The client library as an archive, from which client-lib/c/install links the C library (docs/decisions/0034).
ARCHIVE = rustc --package client-lib --lib --crate-type staticlib --profile

# Most tests wait, for leases, links and certificates, more than they compute; .config/nextest.toml says which do not.
TESTS_AT_ONCE = $$((2 * $$(nproc)))

# The commit whose programs `make upgrade` upgrades from.
OLD ?= 689647d
EARLIER = $(abspath $(TARGET_DIR))/earlier

.PHONY: help demo test check unit library deb container soak upgrade bench tools fmt

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: tools ## a file system written at one provider, handed over twice under load, compared
	$(CARGO) build --package storage-node --package tests --bins
	$(CARGO) run --quiet --package tests --bin demo

test: tools check unit ## every check and every test

check: tools ## format, lints and documentation, without writing to the tree
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	export RUSTDOCFLAGS="-D warnings" && $(CARGO) doc --workspace --no-deps --document-private-items --quiet

# Programs and tests in one go: they have dependencies with the same features then, and everything is built once.
unit: tools ## unit, conformance, crash and process-level tests
	$(CARGO) build --workspace --bins --tests
	cargo $(ARCHIVE) dev
	if cargo nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace --test-threads $(TESTS_AT_ONCE) && cargo test --workspace --doc; \
	else \
		$(CARGO) test --workspace; \
	fi

library: ## the C library, optimised, into PREFIX (target/library), with DESTDIR and LIBDIR (docs/c-library.md)
	cargo $(ARCHIVE) $(PROFILE)
	LIBDIR="$(LIBDIR)" DESTDIR="$(DESTDIR)" client-lib/c/install \
		"$(TARGET_DIR)/$(PROFILE:dev=debug)/libclient_lib.a" "$(PREFIX)"

deb: tools ## a Debian package, optimised, in target/debian (docs/systemd.md)
	$(CARGO) build --profile $(PROFILE) --package storage-node --package nbd-frontend --bins
	cargo $(ARCHIVE) $(PROFILE)
	storage-node/debian/build "$(TARGET_DIR)/$(PROFILE:dev=debug)" "$(TARGET_DIR)/$(PROFILE:dev=debug)/libclient_lib.a" "$(TARGET_DIR)/debian"

container: tools ## what a container image is made of, optimised, in target/container (docs/container.md)
	$(CARGO) build --profile $(PROFILE) --package storage-node --package nbd-frontend --bins
	storage-node/container/build "$(TARGET_DIR)/$(PROFILE:dev=debug)" "$(TARGET_DIR)/container"

soak: tools ## the same tests with many more seeds and larger backlogs, then mutated NBD until it is stopped
	$(CARGO) build --workspace --bins
	cargo $(ARCHIVE) dev
	export HELIO_SEEDS=100000 HELIO_BACKLOG_MIB=2048 HELIO_KILLS=200 HELIO_LOSSES=10 HELIO_MOVES=50 HELIO_UPGRADES=100 HELIO_FUZZ=1000000 && $(CARGO) test --workspace
	export HELIO_FUZZ=endless HELIO_FUZZ_SEED=$$RANDOM && $(CARGO) test --package nbd-frontend --test fuzz -- --nocapture

upgrade: tools ## build the programs of an earlier commit (OLD), and upgrade a cluster of them node by node under its clients
	rm -rf "$(EARLIER)/tree" && git worktree prune && git worktree add --detach "$(EARLIER)/tree" $(OLD)
	ROCKSDB_LIB_DIR="$$(.ci/rocksdb-archive)" && export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1 CARGO_TARGET_DIR="$(EARLIER)/build" && \
		cargo build --manifest-path "$(EARLIER)/tree/Cargo.toml" --package storage-node --package nbd-frontend --bins
	git worktree remove --force "$(EARLIER)/tree"
	$(CARGO) build --package storage-node --package nbd-frontend --bins
	export HELIO_OLD_BIN="$(EARLIER)/build/debug/helio" && $(CARGO) test --package tests --test upgrade -- --nocapture --test-threads 1

bench: tools ## measure speed, cleaning, growth, idle volumes, rebuilding and drains, optimised build; fifty minutes, figures and plots in target/bench
	$(CARGO) build --release --package storage-node --package nbd-frontend --package bench --bins
	$(CARGO) run --release --quiet --package bench -- --out target/bench

tools: ## install what the build and the tests need
	@.ci/install-tools

fmt: ## format the tree
	cargo fmt --all
