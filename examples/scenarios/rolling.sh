#!/usr/bin/env bash
# A new version takes over an alias from the old one on another host, while a client asks without a pause. No request fails.
. "$(dirname "$0")/lib.sh"

network h1 rolling
everywhere rolling
web h2 shop-1 "version 1" --network rolling --alias shop
box h1 client --network rolling -- sleep 3600
until_ok "the alias arrives" in_box h1 client getent hosts shop

# The client writes one line for each answer; curl fails if nobody answers at any address of the name.
in_box h1 client sh -c 'while [ ! -e /tmp/'"$LAB"'-rolling.stop ]; do curl -sS --fail --max-time 5 http://shop/ || echo "a request failed"; done' >"$OUT.answers" 2>&1 &
asking=$!
PAGES+=("$OUT.answers" "/tmp/$LAB-rolling.stop")

until_ok "the old version answers" grep -q "version 1" "$OUT.answers"
web h3 shop-2 "version 2" --network rolling --alias shop
# Which one is asked is the client's choice: getaddrinfo sorts what it gets (RFC 6724).
two() { [ "$(in_box h1 client dig +short shop A | wc -l)" -eq 2 ]; }
until_ok "the alias leads to both" two
up() { in_box h1 client curl -sS --fail --max-time 5 http://shop-2/ >"$OUT" && grep -q "version 2" "$OUT"; }
until_ok "the new one answers by its own name" up
ok "the old version leaves the network, its names first" vx h2 network disconnect rolling shop-1
rm_box h2 shop-1
until_ok "the client asks on" longer "$OUT.answers" $(($(wc -l <"$OUT.answers") + 20))
touch "/tmp/$LAB-rolling.stop"
wait "$asking"
refused "no request failed" grep -q -v "^version [12]$" "$OUT.answers"
refused "the last answers are of the new version" sh -c "tail -n 5 '$OUT.answers' | grep -q 'version 1'"
echo "        $(wc -l <"$OUT.answers") requests"
