# The two commands of the README are `make demo` and `make test`; the others are for people who work on vxmesh.

CARGO ?= cargo
# Command to look for : Debian package that brings it.
DEMO_TOOLS := cc:gcc ping:iputils-ping iperf3:iperf3 tcpdump:tcpdump
TEST_TOOLS := $(DEMO_TOOLS) ip:iproute2 nft:nftables iptables:iptables ps:procps

.PHONY: demo test lint bench fuzz soak clean-lab tools-demo tools-test

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

## fuzz: random damage to the fuzz corpora for ten minutes (FUZZ_SECONDS=N); an input that fails is printed: put it into
## tests/fuzz/corpus/TARGET/NAME.hex below a line `# what it is`
fuzz:
	VXMESH_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(CARGO) test --locked --package vxmesh-tests --test fuzz -- --nocapture

tools-demo:
	@tests/install-tools.sh $(DEMO_TOOLS)

tools-test:
	@tests/install-tools.sh $(TEST_TOOLS)
