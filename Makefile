# The two commands of the README are `make demo` and `make test`; the others are for people who work
# on vxmesh.

CARGO ?= cargo
# Command to look for : Debian package that brings it.
DEMO_TOOLS := cc:gcc ping:iputils-ping iperf3:iperf3 tcpdump:tcpdump
BENCH_TOOLS := cc:gcc ip:iproute2 iperf3:iperf3 ethtool:ethtool
TEST_TOOLS := $(DEMO_TOOLS) ip:iproute2 ethtool:ethtool nft:nftables iptables:iptables ps:procps dig:dnsutils strace:strace conntrack:conntrack \
	busybox:busybox-static dockerd:docker.io podman:podman ctr:containerd /usr/lib/cni/portmap:containernetworking-plugins ufw:ufw firewalld:firewalld curl:curl jq:jq faketime:faketime \
	haproxy:haproxy nginx:nginx-light wrk:wrk

.PHONY: demo test lint bench bench-micro bench-names full fuzz tools-bench tools-demo tools-test

## demo: three hosts on this machine, one encrypted network, real traffic through it
demo: tools-demo
	$(CARGO) build --release --locked --package vxmesh
	target/release/vxmesh lab demo

## test: every test; the namespace tests need root
test: tools-test
	$(CARGO) build --workspace --all-targets --locked
	$(CARGO) test --workspace --all-targets --locked --no-fail-fast
	$(CARGO) test --workspace --doc --locked

## full: the namespace tests at the size of a real mesh; takes minutes and needs root
full: tools-test
	$(CARGO) build --workspace --all-targets --locked
	VXMESH_FULL=1 $(CARGO) test --locked --package vxmesh-tests --test e2e -- --nocapture

## lint: what CI checks before the tests
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	tests/purity.sh

## fuzz: random damage to the fuzz corpora for ten minutes (FUZZ_SECONDS=N); an input that fails is
## printed: put it into tests/fuzz/corpus/TARGET/NAME.hex below a line `# what it is`
fuzz:
	VXMESH_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(CARGO) test --locked --package vxmesh-tests --test fuzz -- --nocapture

## bench: the tunnel against the kernel's VXLAN and other tunnels in one run of some minutes, written
## to docs/performance.md; needs root and installs the others. PEERS=all (or names, or none)
## ROUNDS=10 BENCH_ARGS="--underlay wire"
bench: tools-bench
	$(CARGO) build --release --locked --package vxmesh
	$(CARGO) run --locked --package vxmesh-tests --bin vxmesh-bench -- --write docs --peers $(or $(PEERS),default) \
		--rounds $(or $(ROUNDS),3) $(BENCH_ARGS)

## bench-micro: single steps of a frame's way, and tables of all sizes; needs no root.
## BENCH_ARGS=look_up
bench-micro:
	$(CARGO) bench --locked --package vxmesh-proto --bench tables --bench flows -- $(BENCH_ARGS)
	$(CARGO) bench --locked --package vxmesh-tests --bench micro -- $(BENCH_ARGS)

## bench-names: how many questions about names one core answers, and how long an answer takes
bench-names:
	$(CARGO) run --release --locked --package vxmesh-tests --bin vxmesh-bench -- names $(BENCH_ARGS)

tools-bench:
	@tests/install-tools.sh $(BENCH_TOOLS)

tools-demo:
	@tests/install-tools.sh $(DEMO_TOOLS)

tools-test:
	@tests/install-tools.sh $(TEST_TOOLS)
