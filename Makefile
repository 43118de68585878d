# The two commands of the README are `make demo` and `make test`; the others are for people who work on vxmesh.

CARGO ?= cargo
# Command to look for : Debian package that brings it.
DEMO_TOOLS := cc:gcc ping:iputils-ping iperf3:iperf3 tcpdump:tcpdump
BENCH_TOOLS := cc:gcc ip:iproute2 iperf3:iperf3 ethtool:ethtool
TEST_TOOLS := $(DEMO_TOOLS) ip:iproute2 nft:nftables iptables:iptables ps:procps

.PHONY: demo test lint bench fuzz soak clean-lab tools-bench tools-demo tools-test

## demo: three hosts on this machine, one encrypted network, real traffic through it
demo: tools-demo
	$(CARGO) build --release --locked --package vxmesh
	target/release/vxmesh lab demo

## test: every test; the namespace tests need root
test: tools-test
	$(CARGO) build --workspace --all-targets --locked
	$(CARGO) test --workspace --all-targets --locked
	$(CARGO) test --workspace --doc --locked

## lint: what CI checks before the tests
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	tests/purity.sh

## bench: the tunnel against the kernel's VXLAN in one run (docs/performance.md); needs root. BENCH_ARGS="--rounds 10"
bench: tools-bench
	$(CARGO) build --release --locked --package vxmesh
	$(CARGO) run --locked --package vxmesh-tests --bin vxmesh-bench -- $(BENCH_ARGS)

tools-bench:
	@tests/install-tools.sh $(BENCH_TOOLS)

tools-demo:
	@tests/install-tools.sh $(DEMO_TOOLS)

tools-test:
	@tests/install-tools.sh $(TEST_TOOLS)
