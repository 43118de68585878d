# shellcheck shell=bash
# What the scenarios share: a lab of four hosts, words for "on that host", and checks that say what they checked.
#
# Sourced by each scenario. VXMESH is the binary (default: vxmesh in PATH), LAB the name of a lab that is up (default: vxlab), HOSTS how many hosts it needs (default: 4).
set -euo pipefail

VXMESH=${VXMESH:-vxmesh}
LAB=${LAB:-vxlab}
HOSTS=${HOSTS:-4}
# How long something may take that happens by itself.
PATIENCE=${PATIENCE:-30}

"$VXMESH" lab --name "$LAB" status >/dev/null || {
    echo "there is no lab \`$LAB\`: vxmesh lab --name $LAB up --hosts $HOSTS" >&2
    exit 1
}

# on HOST COMMAND...: a command on that host.
on() {
    local host=$1
    shift
    "$VXMESH" lab --name "$LAB" exec "$host" -- "$@"
}

# vx HOST ARGUMENTS...: vxmesh on that host.
vx() {
    local host=$1
    shift
    on "$host" vxmesh "$@"
}

# in_box HOST SANDBOX COMMAND...: a command in a sandbox of that host.
in_box() {
    local host=$1 box=$2
    shift 2
    vx "$host" exec "$box" -- "$@"
}

# box HOST NAME [OPTION...] -- COMMAND...: a sandbox that goes with the scenario.
box() {
    local host=$1 name=$2
    shift 2
    vx "$host" run -d --name "$name" "$@" >/dev/null
    BOXES+=("$host $name")
}

# rm_box HOST NAME: removes it before the scenario ends.
rm_box() {
    local kept=() one
    for one in "${BOXES[@]}"; do [ "$one" = "$1 $2" ] || kept+=("$one"); done
    BOXES=("${kept[@]}")
    vx "$1" sandbox rm "$2" >/dev/null
}

# network HOST NAME [OPTION...]: a network that goes with the scenario.
network() {
    local host=$1 name=$2
    shift 2
    vx "$host" network create "$name" "$@" >/dev/null
    NETWORKS+=("$host $name")
}

# rm_network HOST NAME: removes it before the scenario ends.
rm_network() {
    local kept=() one
    for one in "${NETWORKS[@]}"; do [ "$one" = "$1 $2" ] || kept+=("$one"); done
    NETWORKS=("${kept[@]}")
    vx "$1" network rm "$2" >/dev/null
}

# everywhere NETWORK: waits until it is on all hosts, which it reaches by itself.
everywhere() {
    local each
    for each in $(seq -f 'h%.0f' "$HOSTS"); do until_ok "$each has $1" vx "$each" network inspect "$1"; done
}

# web HOST NAME TEXT [OPTION...]: a sandbox whose web server answers with a text.
web() {
    local host=$1 name=$2 text=$3
    shift 3
    box "$host" "$name" "$@" -- sh -c "mkdir -p /tmp/$LAB-$name && cd /tmp/$LAB-$name && echo '$text' >index.html && exec busybox httpd -f -p 80 -h ."
    PAGES+=("/tmp/$LAB-$name")
}

# ok TEXT COMMAND...: succeeds.
ok() {
    local text=$1
    shift
    if "$@" >"$OUT" 2>&1; then
        echo "ok      $text"
    else
        echo "FAILED  $text: $*" >&2
        cat "$OUT" >&2
        exit 1
    fi
}

# refused TEXT COMMAND...: fails, as it should.
refused() {
    local text=$1
    shift
    if "$@" >"$OUT" 2>&1; then
        echo "FAILED  $text: this succeeded: $*" >&2
        cat "$OUT" >&2
        exit 1
    fi
    echo "ok      $text"
}

# says TEXT EXPECTED COMMAND...: succeeds, and its output has the expected words.
says() {
    local text=$1 expected=$2
    shift 2
    if "$@" >"$OUT" 2>&1 && grep -qF -- "$expected" "$OUT"; then
        echo "ok      $text"
    else
        echo "FAILED  $text: no \`$expected\` from: $*" >&2
        cat "$OUT" >&2
        exit 1
    fi
}

# until_ok TEXT COMMAND...: succeeds sooner or later.
until_ok() {
    local text=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@" >"$OUT" 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "FAILED  $text, for $PATIENCE s: $*" >&2
            cat "$OUT" >&2
            exit 1
        fi
    done
}

# status_of EXPECTED TEXT COMMAND...: ends with this exit status.
status_of() {
    local expected=$1 text=$2 status=0
    shift 2
    "$@" >"$OUT" 2>&1 || status=$?
    if [ "$status" -ne "$expected" ]; then
        echo "FAILED  $text: exit status $status instead of $expected from: $*" >&2
        cat "$OUT" >&2
        exit 1
    fi
    echo "ok      $text"
}

# longer FILE LINES: whether it has more lines than that.
longer() { [ "$(wc -l <"$1")" -gt "$2" ]; }

# json HOST FILTER ARGUMENTS...: a field of what vxmesh says on that host.
json() {
    local host=$1 filter=$2
    shift 2
    vx "$host" --format json "$@" | jq -r "$filter"
}

BOXES=() NETWORKS=() PAGES=()
OUT=$(mktemp)

clear_away() {
    local status=$? each
    for each in "${BOXES[@]}"; do vx "${each% *}" sandbox rm "${each#* }" >/dev/null || status=1; done
    for each in "${NETWORKS[@]}"; do vx "${each% *}" network rm "${each#* }" >/dev/null || status=1; done
    for each in "${PAGES[@]}"; do rm -rf "$each"; done
    rm -f "$OUT"
    exit "$status"
}
trap clear_away EXIT
