# Two commands do everything on a fresh Debian machine with Rust: `make demo` and `make test`.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# RocksDB's archive is built once per machine and linked by every build (docs/decisions/0002-rocksdb-archive.md).
CARGO = export ROCKSDB_LIB_DIR="$$(.ci/rocksdb-archive)" ROCKSDB_STATIC=1 && cargo

.PHONY: help tools test check unit soak fmt

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

tools: ## install what the build and the tests need
	@.ci/install-tools

test: tools check unit ## run every check and test

check: tools ## format, lints and documentation, without writing to the tree
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	export RUSTDOCFLAGS="-D warnings" && $(CARGO) doc --workspace --no-deps --quiet

unit: tools ## unit, conformance, crash and interoperability tests
	$(CARGO) test --workspace

soak: tools ## the same tests with many more seeds
	export HELIO_SEEDS=20000 && $(CARGO) test --workspace

fmt: ## format the tree
	cargo fmt --all
