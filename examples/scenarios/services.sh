#!/usr/bin/env bash
# A service spreads connections over five hosts, keeps the client's address, and goes on while backends are drained, come, go and die.
#
# REQUESTS is how many there are in each case (default: 10000), LOAD for how many seconds wrk asks at least (default: 60), WHO the server (default: the example `who` beside VXMESH).
HOSTS=5
. "$(dirname "$0")/lib.sh"

HERE=$(cd "$(dirname "$0")" && pwd)
REQUESTS=${REQUESTS:-10000}
LOAD=${LOAD:-60}
WHO=${WHO:-$(dirname "$(command -v "$VXMESH")")/examples/who}
[ -x "$WHO" ] || {
    echo "there is no server $WHO: cargo build --release --examples" >&2
    exit 1
}
command -v wrk >/dev/null || {
    echo "there is no wrk: apt-get install -y wrk" >&2
    exit 1
}

# on_host NUMBER: the host of that backend; those after the fifth are on hosts that have one already.
on_host() { echo "h$((($1 - 1) % 5 + 1))"; }

# server NUMBER: that backend.
server() { box "$(on_host "$1")" "web$1" --label app=web --network shop -- env WHO="$WHO" "$HERE/who.sh" 8080; }

# states EXPECTED: whether h2 shows these states of the backends, in the order of their names.
states() { [ "$(json h2 '[.backends[].state] | join(" ")' service inspect web)" = "$1" ]; }

# What a hash gives each of five backends, in percent: less evenly the fewer there are. And within how many milliseconds a new backend is to have a connection: a small run says only that it is not far off.
if [ "$REQUESTS" -ge 10000 ]; then LEAST=18 MOST=22 SOON=1000; else LEAST=14 MOST=26 SOON=10000; fi

# spread OPTION SHARE...: as many requests of the client as REQUESTS; each backend has a share from so many percent to so many.
spread() {
    local version=$1 least=$(($2 * REQUESTS / 100)) most=$(($3 * REQUESTS / 100))
    in_box h2 c curl "$version" -sS -m 5 "http://web/?[1-$REQUESTS]" | sort | uniq -c >"$OUT.spread"
    awk -v least="$least" -v most="$most" -v all="$REQUESTS" '
        { sum += $1; if ($1 < least || $1 > most) wrong = 1; addresses[$3] = 1 }
        END { for (each in addresses) different++; exit wrong || NR != 5 || sum != all || different != 1 }' "$OUT.spread" || {
        cat "$OUT.spread" >&2
        return 1
    }
}

# own HOST SANDBOX VERSION: its address.
own() { in_box "$1" "$2" ip -"$3" -o addr show scope global | awk '{ sub("/.*", "", $4); print $4; exit }'; }

# sees_own VERSION: whether backends on other hosts see the client's own address.
sees_own() { [ "$(awk '{ print $3; exit }' "$OUT.spread")" = "$(own h2 c "$1")" ]; }

# offload on|off: whether the client, the backends and the kernel between them leave checksums and cutting to others.
offload() {
    local each
    in_box h2 c ethtool -K eth0 tx "$1"
    for each in 1 2 3 4 5; do in_box "h$each" "web$each" ethtool -K eth0 tx "$1"; done
    in_box h2 c ethtool -k eth0 | grep -q "^tx-checksumming: $1"
}

# asking NAME: a client that never stops, one line for each answer.
asking() {
    : >"$OUT.$1"
    in_box h2 c sh -c "while [ ! -e /tmp/$LAB-services.stop ]; do curl -4 -sS -m 10 http://web/ || echo 'a request failed'; done" >"$OUT.$1" 2>&1 &
    ASKING=$!
}

# asked NAME: ends it; no request has failed.
asked() {
    touch "/tmp/$LAB-services.stop"
    wait "$ASKING"
    rm "/tmp/$LAB-services.stop"
    ! grep -v '^web[1-5] ' "$OUT.$1"
}

# more NAME: 30 more answers.
more() { until_ok "the client asks on" longer "$OUT.$1" $(($(wc -l <"$OUT.$1") + 30)); }

# loading: 50 clients that never stop, one run of wrk after the other.
loading() {
    rm -f "/tmp/$LAB-services.stop"
    in_box h2 c sh -c "while [ ! -e /tmp/$LAB-services.stop ]; do wrk -t2 -c50 -d${LOAD}s http://web/ || echo 'wrk failed'; done" >"$OUT.load" 2>&1 &
    ASKING=$!
}

# loaded: ends it; no request has failed. wrk says so only where one has.
loaded() {
    touch "/tmp/$LAB-services.stop"
    wait "$ASKING"
    rm "/tmp/$LAB-services.stop"
    grep -q 'Requests/sec' "$OUT.load" && ! grep -E 'Socket errors|Non-2xx|wrk failed|unable' "$OUT.load"
}

# connections NAME: how many h2 has begun to a backend.
connections() { json h2 "[.backends[] | select(.name == \"$1\") | .counters.begun // 0] | add // 0" service inspect web; }

# since NAME: what follows is measured from now. begins NAME: whether that backend has been given a connection since.
since() { BEGUN=$(connections "$1") START=${EPOCHREALTIME/[.,]/}; }
begins() { [ "$(connections "$1")" -gt "$BEGUN" ]; }
passed() { echo $(((${EPOCHREALTIME/[.,]/} - START) / 1000)); }

# joined NUMBER: a backend that was just let in has its first connection soon after.
SLOWEST=0
joined() {
    local took
    until_ok "web$1 has a connection" begins "web$1"
    took=$(passed)
    [ "$took" -le "$SLOWEST" ] || SLOWEST=$took
    [ "$took" -le "$SOON" ] || {
        echo "FAILED  web$1 has its first connection after $took ms, at most $SOON" >&2
        exit 1
    }
}

# join NUMBER...: starts these backends, one after the other.
join() {
    local each
    for each in "$@"; do
        server "$each"
        BEGUN=0 START=${EPOCHREALTIME/[.,]/}
        joined "$each"
    done
}

# leave NUMBER...: removes these at once, none of them drained.
leave() {
    local each one parts=() kept=()
    for each in "$@"; do
        vx "$(on_host "$each")" sandbox rm "web$each" >/dev/null &
        parts+=($!)
        for one in "${BOXES[@]}"; do [ "$one" = "$(on_host "$each") web$each" ] || kept+=("$one"); done
        BOXES=("${kept[@]}") kept=()
    done
    for each in "${parts[@]}"; do wait "$each"; done
}

# ends_at SECONDS: the last backend answers for about so long, and is refused then.
ends_at() {
    local least=$(($1 * 1000 - 500)) status=0
    while in_box h2 c curl -4 -sS -m 5 http://web/; do :; done || status=$?
    in_box h2 c curl -4 -sS -m 5 http://web/ || status=$?
    [ "$status" = 7 ] && [ "$(passed)" -ge "$least" ]
}

PAGES+=("$OUT.spread" "$OUT.itself" "$OUT.life" "$OUT.load" "$OUT.death" "/tmp/$LAB-services.stop")
network h1 shop --subnet 10.77.0.0/16 --subnet fd77::/64
everywhere shop
for each in 1 2 3 4 5; do server "$each"; done
box h2 c --network shop -- sleep 36000
ok "a service is made" vx h1 service create web --network shop --port 80:8080 --selector app=web --drain 5s
trap 'vx h1 service rm web >/dev/null || true; clear_away' EXIT
until_ok "five backends are ready" states "ready ready ready ready ready"
until_ok "it answers" in_box h2 c curl -sS -m 5 http://web/

for version in 4 6; do
    ok "$REQUESTS requests by IPv$version: none is lost, each backend has $LEAST to $MOST of 100" spread -$version "$LEAST" "$MOST"
    ok "the backends see the client's own address" sees_own $version
done
ok "both ends make their own checksums" offload off
for version in 4 6; do
    ok "$REQUESTS requests by IPv$version: none is lost, each backend has $LEAST to $MOST of 100" spread -$version "$LEAST" "$MOST"
done
ok "both ends leave them to others again" offload on
ok "backends take turns" vx h1 service update web --lb rr
for version in 4 6; do
    until_ok "each has one in five" spread -$version 20 20
    echo "ok      $REQUESTS requests by IPv$version in turn: each backend has a fifth"
done
ok "a hash chooses again" vx h1 service update web --lb maglev
# vip VERSION: the service's address.
vip() { json h1 '.vips[]' service inspect web | if [ "$1" = 4 ]; then grep -v :; else grep :; fi; }

# itself VERSION: web1 sees the service's address where it reaches itself, and the others web1's own.
itself() {
    in_box h1 web1 curl -"$1" -sS -m 5 "http://web/?[1-100]" >"$OUT.itself"
    awk -v vip="$(vip "$1")" -v own="$(own h1 web1 "$1")" '
        { seen[$1 == "web1" ? "itself" : "others"] = 1; if ($2 != ($1 == "web1" ? vip : own)) wrong = 1 }
        END { exit wrong || !seen["itself"] || !seen["others"] || NR != 100 }' "$OUT.itself"
}

# by_host VERSION: h2 itself asks, and is seen by its own address in the network.
by_host() {
    local at seen
    at=$(vip "$1")
    [ "$1" = 4 ] || at="[$at]"
    seen=$(on h2 curl -sS -m 5 "http://$at/?[1-20]" | awk '{ print $2 }' | sort -u)
    [ "$(json h2 '.node + " " + .name[:5]' locate "$seen")" = "$(json h2 .node_id status) node-" ]
}
for version in 4 6; do
    until_ok "web1 reaches itself and others by IPv$version" itself $version
    echo "ok      by IPv$version a backend that reaches itself sees the service's address, the others see its own"
    ok "by IPv$version the backends see a host itself by its own address in the network" by_host $version
done

asking life
more life
for each in 1 3 5; do
    ok "web$each is drained" vx h4 service drain web "web$each"
    more life
    rm_box "h$each" "web$each"
    more life
    server "$each"
    vx h4 service drain web "web$each" --undo >/dev/null
    until_ok "web$each is back" states "ready ready ready ready ready"
    more life
done
ok "no request fails while backends are drained, removed and replaced" asked life
echo "        $(wc -l <"$OUT.life") requests"

ok "backends are checked" vx h1 service update web --health tcp --health-interval 200ms --health-rise 1
until_ok "all have passed" states "ready ready ready ready ready"
since web1
loading
until_ok "wrk asks" begins web1
for each in 1 2 3 4 5; do
    vx h4 service drain web "web$each" >/dev/null
    leave "$each"
    server "$each"
    since "web$each"
    vx h3 service drain web "web$each" --undo >/dev/null
    joined "$each"
done
echo "ok      each backend is drained, removed and replaced under load"
leave 4 5
echo "ok      three are left"
join 4 5 6 7 8 9 10
echo "ok      three become ten: each new one has a connection within $SLOWEST ms"
leave 3 4 5 6 7 8 9 10
echo "ok      ten become two"
ok "no request fails while wrk asks with 50 clients: no socket error, no other answer" loaded
awk '/Requests\/sec/ { sum += $2; runs++ } END { printf "        %d requests a second\n", sum / runs }' "$OUT.load"
leave 2
since web1
ok "the last backend is drained" vx h5 service drain web web1
ok "it serves new connections" in_box h2 c sh -c "wrk -t2 -c50 -d2s http://web/ >$OUT.load && ! grep -E 'Socket errors|Non-2xx' $OUT.load"
ok "until its time is over, and no longer" ends_at 5
vx h5 service drain web web1 --undo >/dev/null
for each in 2 3 4 5; do server "$each"; done
ok "backends are not checked any more" vx h1 service update web --health none
until_ok "five backends are ready" states "ready ready ready ready ready"

asking death
more death
died=$(wc -l <"$OUT.death")
ok "the agent of h4 is killed" "$VXMESH" lab --name "$LAB" kill h4
until_ok "the client asks on" longer "$OUT.death" $((died + 100))
ok "it is started" "$VXMESH" lab --name "$LAB" start h4
until_ok "web4 is back" states "ready ready ready ready ready"
until_ok "web4 answers" sh -c "tail -n 20 '$OUT.death' | grep -q '^web4 '"
ok "h5 is cut off" "$VXMESH" lab --name "$LAB" cut h5
until_ok "the client asks on" longer "$OUT.death" $(($(wc -l <"$OUT.death") + 100))
ok "it is there again" "$VXMESH" lab --name "$LAB" heal
ok "no request fails while an agent is killed and a host is cut off" asked death
echo "        $(wc -l <"$OUT.death") requests"
