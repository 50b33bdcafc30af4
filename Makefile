# Holdfast: see README.md. Every target says what it does while it does it.
HOLDFAST_HOME ?= $(HOME)/.holdfast
export HOLDFAST_HOME
CARGO ?= cargo

.PHONY: help up down clean-state test bench build images image-debian acceptance codegen fmt

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

up: ## install what is missing, build, start the platform with three nodes and a VM
	@scripts/up

down: ## stop the platform; its state is kept
	@if [ -x target/release/holdfast ]; then target/release/holdfast down; else echo "nothing is built, so nothing runs"; fi

clean-state: ## stop the platform and delete its state (VMs and disks too)
	@if [ -x target/release/holdfast ]; then target/release/holdfast down --purge; else echo "nothing is built, so nothing runs"; fi

build: ## build the programs into target/release
	@$(CARGO) build --release --workspace --exclude holdfast-sim --bins

images: ## build the demo guest image
	@images/demo/build

image-debian: ## build a full Debian guest image with real cloud-init (two minutes)
	@images/debian/build

test: ## everything CI runs
	@scripts/test

bench: ## measure, and compare with bare QEMU
	@scripts/bench

acceptance: ## how many acceptance rows of each spec have a test (V=1 lists those without)
	@$(CARGO) run --quiet -p xtask -- acceptance

codegen: ## write the CRDs and generated docs again
	@$(CARGO) run --quiet -p xtask -- codegen

fmt: ## format the sources
	@$(CARGO) fmt --all
