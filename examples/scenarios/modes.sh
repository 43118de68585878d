#!/usr/bin/env bash
# Sandboxes without a network of their own: none, the host's, and one that looks over the shoulder of another.
. "$(dirname "$0")/lib.sh"

network h1 blue
everywhere blue
box h1 alone --network none -- sleep 3600
ok "none: loopback only" in_box h1 alone sh -c '[ "$(ip -o link | cut -d: -f2)" = " lo" ]'

says "host: the host's interfaces" eth0 vx h1 run --network host -- ip -o link show eth0
says "host: the host's address" 10.213.0.1 vx h1 run --network host -- ip -4 -o addr show eth0

web h1 web "hello from the sandbox" --network blue
box h2 client --network blue -- sleep 3600
until_ok "names arrive" in_box h2 client getent hosts web
says "shared: another's loopback is its own" "hello from the sandbox" vx h1 run --network sandbox:web -- curl -sS --fail --max-time 5 http://127.0.0.1/

# A troubleshooter joins the namespace and captures what arrives.
capture=$(mktemp)
PAGES+=("$capture")
vx h1 run --network sandbox:web -- timeout 20 tcpdump -l -n -c 1 -i eth0 "tcp dst port 80" >"$capture" 2>"$capture.err" &
watching=$!
PAGES+=("$capture.err")
until_ok "the capture began" grep -q "listening on" "$capture.err"
ok "the client calls" in_box h2 client curl -sS --fail --max-time 5 http://web/
wait "$watching"
ok "the troubleshooter saw it" grep -q ".80: Flags" "$capture"
