#!/usr/bin/env bash
# Clients outside of the network reach a service by each of five hosts, and its backends see them.
#
# REQUESTS is how many there are in each case (default: 1000), CLIENTS how many at once, WHO the server (default: the example `who` beside VXMESH).
HOSTS=5
. "$(dirname "$0")/lib.sh"

HERE=$(cd "$(dirname "$0")" && pwd)
REQUESTS=${REQUESTS:-1000}
CLIENTS=${CLIENTS:-1000}
WHO=${WHO:-$(dirname "$(command -v "$VXMESH")")/examples/who}
[ -x "$WHO" ] || {
    echo "there is no server $WHO: cargo build --release --examples" >&2
    exit 1
}

# host NUMBER VERSION: a host's address on the underlay.
host() { if [ "$2" = 4 ]; then echo "10.213.0.$1"; else printf '[fd13::%x]\n' "$1"; fi; }

# outside_ip VERSION: the address of a machine of the underlay that belongs to no mesh.
outside_ip() { if [ "$1" = 4 ]; then echo 10.213.0.200; else echo fd13::200; fi; }

# outside COMMAND...: on a machine of the underlay that belongs to no mesh.
OUTSIDE=$LAB-outside
outside() { ip netns exec "$OUTSIDE" "$@"; }

away() {
    vx h1 service rm front >/dev/null 2>&1 || true
    ip netns del "$OUTSIDE" || true
    clear_away
}

# asked VERSION: as many requests as REQUESTS by each host; none is lost, and each backend sees this machine.
asked() {
    local number own
    own=$(outside_ip "$1")
    for number in 1 2 3 4 5; do
        outside curl -sS -m 10 "http://$(host "$number" "$1"):8080/?[1-$REQUESTS]" >"$OUT.asked" || return 1
        sort "$OUT.asked" | uniq -c >"$OUT.spread"
        awk -v own="$own" -v all="$REQUESTS" '{ sum += $1; if ($3 != own) wrong = 1 } END { exit wrong || NR != 5 || sum != all }' "$OUT.spread" || {
            echo "by h$number:" >&2
            cat "$OUT.spread" >&2
            return 1
        }
    done
}

# at_once KIND VERSION: CLIENTS pages or datagrams at the same time by each host, of four programs; all are answered.
at_once() {
    local number part parts
    for number in 1 2 3 4 5; do
        parts=()
        for part in 1 2 3 4; do
            "$1" "$(host "$number" "$2")" $((CLIENTS / 4)) >"$OUT.asked$part" &
            parts+=($!)
        done
        for part in "${parts[@]}"; do wait "$part" || return 1; done
        [ "$(cat "$OUT.asked"[1-4] | grep -c "^web[1-5] $(outside_ip "$2")$")" = "$((CLIENTS / 4 * 4))" ] || {
            echo "by h$number: $(cat "$OUT.asked"[1-4] | wc -l) answers" >&2
            return 1
        }
    done
}

# pages HOST COUNT: so many pages at once.
pages() { outside curl -sS -m 20 --no-progress-meter --parallel --parallel-immediate --parallel-max 250 "http://$1:8080/?[1-$2]"; }

# datagrams HOST COUNT: so many at once, each of a socket of its own, and the answers.
datagrams() {
    # shellcheck disable=SC2016
    outside bash -c '
        for n in $(seq "$2"); do exec {one}<>"/dev/udp/$1/8080" && all+=("$one"); done
        for one in "${all[@]}"; do echo >&"$one"; done
        for one in "${all[@]}"; do IFS= read -r -t 5 -u "$one" answer && echo "$answer"; done
        true' - "$(tr -d '[]' <<<"$1")" "$2"
}

# stands HOST PORT STATE: how this host says that a published port stands.
stands() { [ "$(json "$1" "[.published[] | select(.port | startswith(\"$2:\")) | .state] | unique | join(\" \")" service inspect front)" = "$3" ]; }

# closed NUMBER PORT: whether a host refuses at once.
closed() {
    local status=0
    outside curl -4 -sS -m 5 "http://$(host "$1" 4):$2/" || status=$?
    [ "$status" = 7 ]
}

# none HOST: neither rules nor sockets nor connections of the ports are left there.
none() { ! { on "$1" sh -c "nft list ruleset; ss -Htuln" && led "$1"; } | grep -E ":808[01] |dport 808[01]|led to"; }

# led HOST: connections to the ports that its kernel has in mind and leads on, each with where to.
led() {
    on "$1" sh -c "PATH=\$PATH:/usr/sbin; conntrack -L -f ipv4 && conntrack -L -f ipv6" 2>/dev/null |
        sed -nE 's/.* dst=([^ ]+) sport=[0-9]+ dport=808[01] src=([^ ]+) .*/\1 \2/p' | awk '$1 != $2 { print "led to " $2 }'
}

PAGES+=("$OUT.asked"{,1,2,3,4} "$OUT.spread")
network h1 shop --subnet 10.78.0.0/16 --subnet fd78::/64
everywhere shop
for each in 1 2 3 4 5; do
    box "h$each" "web$each" --label app=web --network shop -- env WHO="$WHO" "$HERE/who.sh" 8080
done
ip netns add "$OUTSIDE"
trap away EXIT
ip -n "$LAB-wire" link add out0 type veth peer name eth0 netns "$OUTSIDE"
ip -n "$LAB-wire" link set out0 master wire up
ip -n "$OUTSIDE" link set lo up
ip -n "$OUTSIDE" link set eth0 up
ip -n "$OUTSIDE" address add 10.213.0.200/24 dev eth0
ip -n "$OUTSIDE" address add fd13::200/64 dev eth0 nodad

ok "a service is published on all hosts" vx h1 service create front --network shop --port 80:8080 --port 80:8080/udp --selector app=web --lb rr --publish 8080:80 --publish 8080:80/udp
for each in 1 2 3 4 5; do until_ok "h$each has the port" stands "h$each" 8080 open; done
for each in 1 2 3 4 5; do until_ok "h$each answers" outside curl -4 -sS -m 5 "http://$(host "$each" 4):8080/"; done
for version in 4 6; do
    ok "$REQUESTS requests by IPv$version and each host: none is lost, the backends see the client itself" asked $version
done
for version in 4 6; do
    ok "$CLIENTS requests at once by IPv$version and each host: all are answered" at_once pages $version
    ok "$CLIENTS datagrams at once by IPv$version and each host: all are answered" at_once datagrams $version
done
ok "the port is for some clients only" vx h2 service update front --allow 10.213.0.1/32
for each in 1 2 3 4 5; do until_ok "h$each refuses the others at once" closed "$each" 8080; done
ok "it is for all again" vx h2 service update front --allow all
for each in 1 2 3 4 5; do until_ok "h$each answers" outside curl -4 -sS -m 5 "http://$(host "$each" 4):8080/"; done
rm_box h5 web5
ok "another port is for hosts with backends" vx h3 service update front --add-port 81:8080 --add-publish 8081:81,mode=host
for each in 1 2 3 4; do
    until_ok "h$each leads to its own backend" sh -c "ip netns exec $OUTSIDE curl -4 -sS -m 5 http://$(host "$each" 4):8081/ | grep -q '^web$each 10.213.0.200$'"
done
until_ok "h5 has no backend, and no port" closed 5 8081
has_led() { led "$1" | grep -q "led to"; }
for each in 1 2 3 4 5; do ok "the kernel of h$each has connections in mind" has_led "h$each"; done
ok "the service is removed" vx h4 service rm front
for each in 1 2 3 4 5; do
    until_ok "h$each has closed the port" closed "$each" 8080
    until_ok "nothing of it is left on h$each" none "h$each"
done
