#!/usr/bin/env bash
# A new version takes over an alias from the old one on another host, while a client asks without a pause. No request fails.
. "$(dirname "$0")/lib.sh"

network h1 rolling
network h1 staging
everywhere rolling
everywhere staging
web h2 shop-1 "version 1" --network rolling --alias shop
box h1 client --network rolling -- sleep 3600
until_ok "the alias arrives" in_box h1 client getent hosts shop

# The client writes one line for each answer. The name leads to one endpoint at a time, in turn, so curl fails if that one does not answer.
in_box h1 client sh -c 'while [ ! -e /tmp/'"$LAB"'-rolling.stop ]; do curl -sS --fail --max-time 5 http://shop/ || echo "a request failed"; done' >"$OUT.answers" 2>&1 &
asking=$!
PAGES+=("$OUT.answers" "/tmp/$LAB-rolling.stop")

until_ok "the old version answers" grep -q "version 1" "$OUT.answers"
# It has the alias once it answers.
web h3 shop-2 "version 2" --network staging
up() { in_box h3 shop-2 curl -sS --fail --max-time 5 http://localhost/ >"$OUT" && grep -q "version 2" "$OUT"; }
until_ok "the new version is ready" up
ok "it gets the alias" vx h3 network connect rolling shop-2 --alias shop
two() { [ "$(in_box h1 client dig +short tasks.shop A | wc -l)" -eq 2 ]; }
until_ok "the alias is both's" two
until_ok "the new version answers, too" grep -q "version 2" "$OUT.answers"
ok "the old version leaves the network, its names first" vx h2 network disconnect rolling shop-1
rm_box h2 shop-1
until_ok "the client asks on" longer "$OUT.answers" $(($(wc -l <"$OUT.answers") + 20))
touch "/tmp/$LAB-rolling.stop"
wait "$asking"
refused "no request failed" grep -q -v "^version [12]$" "$OUT.answers"
refused "the last answers are of the new version" sh -c "tail -n 5 '$OUT.answers' | grep -q 'version 1'"
echo "        $(wc -l <"$OUT.answers") requests"
