#!/usr/bin/env bash
# nftables 1.0.6 with Linux 6.18: an element of a set that two rules update with different timeouts
# is listed with the timeout of the rule that made it, whatever the last one was.
#
#   udp dport 1 update @s { ip daddr timeout 15s }
#   udp dport 2 update @s { ip daddr timeout 3h }
#
# One would expect the second rule's three hours to take the place of the 15 seconds. They do: the
# element lives for three hours. But `nft list set` goes on to say "timeout 15s", beside "expires
# 2h59m59s", and says "timeout 3h" of one that is about to go in a second. Only `expires` tells how
# long an element lives. Whoever saves a ruleset with its elements and looks only at `timeout`, or
# tests for it, is misled. JSON has the same two fields.
#
# Seen on Debian 12. Needs root, apt-get and unshare.
set -euo pipefail
if [ "${1:-}" != inside ]; then
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    chmod 755 "$dir"
    (cd "$dir" && apt-get download -q nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11=1.2.4-2 \
        libmnl0 libjansson4 libxtables12 libgmp10 libedit2 libbsd0 libmd0 iproute2 libbpf1 libelf1 libcap2 \
        >/dev/null && for deb in *.deb; do dpkg -x "$deb" .; done)
    export PATH="$dir/usr/sbin:$dir/sbin:$dir/bin:$PATH"
    export LD_LIBRARY_PATH="$dir/usr/lib/x86_64-linux-gnu:$dir/lib/x86_64-linux-gnu"
    nft --version && uname -r
    unshare --net bash "$0" inside
    exit
fi
ip link set lo up
nft -f - <<'NFT'
table inet t {
    set s { type ipv4_addr; size 10; flags dynamic,timeout; }
    chain out {
        type filter hook output priority 0
        udp dport 1 update @s { ip daddr timeout 15s }
        udp dport 2 update @s { ip daddr timeout 3h }
    }
}
NFT
check() { # port, pattern
    echo x >"/dev/udp/127.0.0.1/$1"
    got=$(nft list set inet t s | grep elements)
    echo "after port $1: $got"
    grep -Eq "$2" <<<"$got" || { echo "expected: $2" && exit 1; }
}
check 1 'timeout 15s expires 1[0-9]s'
check 2 'timeout 15s expires 2h59m'
check 1 'timeout 15s expires 1[0-9]s'
nft flush set inet t s
check 2 'timeout 3h expires 2h59m'
check 1 'timeout 3h expires 1[0-9]s'
echo "as it was seen"
