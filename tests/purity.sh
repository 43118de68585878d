#!/usr/bin/env bash
# Invariant I1: nothing that does IO may enter the dependency tree of vxmesh-proto; and the direction of the crates.
set -euo pipefail
cd "$(dirname "$0")/.."

tree() { cargo tree --locked --package "$1" --edges normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u; }

fail=0
refuse() { # refuse CRATE PATTERN
    local found
    found=$(tree "$1" | grep -Ex "$2" || true)
    if [ -n "$found" ]; then
        echo "$1 must not depend on: ${found//$'\n'/ }" >&2
        fail=1
    fi
}
refuse vxmesh-proto 'tokio|mio|socket2|quinn|quinn-udp|rustls|hyper|nix|rtnetlink|vxmesh|vxmesh-gossip'
refuse vxmesh-gossip 'quinn|rustls|hyper|nix|rtnetlink|vxmesh'
exit $fail
