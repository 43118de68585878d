#!/usr/bin/env bash
# HAProxy 2.6.12: a name with more addresses than a datagram holds has no server at all.
#
# `server-template web 60 NAME:80 resolvers ...` makes up to 60 servers of the addresses of a name.
# By default HAProxy takes answers of 512 bytes, as plain DNS does: 29 IPv4 addresses of a short
# name. A name server marks a longer answer as truncated, and every resolver asks again by TCP (RFC
# 7766 section 5). HAProxy does not: it drops the answer, the addresses in it, too. So the backend
# that grows from 29 to 30 addresses loses all of its servers, after 30 s if it had some. By the
# address `tcp@...` it asks by TCP, where the limit of 512 bytes counts as well, which is for
# datagrams only (RFC 6891 section 6.2.3).
# Set `accepted_payload_size`: 1232 for some 70 addresses by UDP, 65535 with `tcp@` for all.
#
# Seen on Debian 12, x86-64. Needs apt-get, dpkg, python3 and curl, and ports 25353 and 25360 of
# 127.0.0.1.
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir"
apt-get download -qq 'haproxy=2.6.12*' liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 libpcre2-8-0 2>/dev/null
for package in ./*.deb; do dpkg -x "$package" "$dir"; done
LD_LIBRARY_PATH=$(dirname "$(find "$dir/usr/lib" -name 'liblua5.3*' -print -quit)")
export LD_LIBRARY_PATH

# A name server, by UDP and TCP: `nCOUNT.test` has so many addresses.
cat >server.py <<'PYTHON'
import socket, struct
from threading import Thread

def answer(query, room):
    at, asked = 12, []
    while query[at]:
        asked.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question, kind, rest = query[12:at + 5], query[at + 1:at + 3], query[at + 5:]
    # An OPT record says how much the asker takes (RFC 6891).
    has_opt = rest[:3] == b"\0\0\x29"
    if room is None:
        room = struct.unpack("!H", rest[3:5])[0] if has_opt else 512
    opt = b"\0" + struct.pack("!HHIH", 41, 65535, 0, 0) if has_opt else b""
    count = int(asked[0][1:]) if kind == b"\0\1" else 0
    fits = min(count, (room - 12 - len(question) - len(opt)) // 16)
    record = lambda n: b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + bytes([127, 0, 1, n + 1])
    flags = 0x8400 | (0x200 if fits < count else 0)
    counts = struct.pack("!HHHHH", flags, 1, fits, 0, 1 if has_opt else 0)
    return query[:2] + counts + question + b"".join(map(record, range(fits))) + opt

def stream(connection):
    data = b""
    while more := connection.recv(4096):
        data += more
        while len(data) > 2 and len(data) >= 2 + struct.unpack("!H", data[:2])[0]:
            length = struct.unpack("!H", data[:2])[0]
            said = answer(data[2:2 + length], 65535)
            connection.sendall(struct.pack("!H", len(said)) + said)
            data = data[2 + length:]

def listen():
    server = socket.create_server(("127.0.0.1", 25353))
    while True:
        Thread(target=stream, args=(server.accept()[0],), daemon=True).start()

Thread(target=listen, daemon=True).start()
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 25353))
while True:
    query, asker = names.recvfrom(4096)
    names.sendto(answer(query, None), asker)
PYTHON
python3 server.py &

cat >haproxy.cfg <<'CFG'
defaults
    mode http
    timeout connect 2s
    timeout client 2s
    timeout server 2s
frontend stats
    bind 127.0.0.1:25360
    stats enable
    stats uri /
CFG
# resolvers NAME ADDRESS [SIZE]
resolvers() {
    printf 'resolvers %s\n    nameserver here %s127.0.0.1:25353\n    timeout resolve 500ms\n' "$1" "$2"
    [ -z "${3-}" ] || echo "    accepted_payload_size $3"
    for count in 29 30 60; do
        printf 'backend %s-%s\n    server-template web 60 n%s.test:80 resolvers %s resolve-prefer ipv4 init-addr none\n' "$1" "$count" "$count" "$1"
    done
}
{
    resolvers udp ""
    resolvers udp1232 "" 1232
    resolvers tcp tcp@
    resolvers tcp65535 tcp@ 65535
} >>haproxy.cfg
"$dir/usr/sbin/haproxy" -db -f haproxy.cfg >log 2>&1 &

# How many servers of each backend have an address.
servers() {
    for of in udp udp1232 tcp tcp65535; do
        printf '%s:' "$of"
        for count in 29 30 60; do
            printf ' %s of %s' "$(curl -s -m 2 'http://127.0.0.1:25360/;csv' | awk -F, -v of="$of-$count" '$1 == of && $2 ~ /^web/ && $18 !~ /MAINT/' | wc -l)" "$count"
        done
        echo
    done
}
want='udp: 29 of 29 0 of 30 0 of 60
udp1232: 29 of 29 30 of 30 60 of 60
tcp: 29 of 29 0 of 30 0 of 60
tcp65535: 29 of 29 30 of 30 60 of 60'
# It asks twice a second.
for _ in $(seq 10); do
    sleep 1
    seen=$(servers)
    [ "$seen" != "$want" ] || break
done
sleep 2
seen=$(servers)
echo "$seen"
[ "$seen" = "$want" ] || { echo "HAProxy behaves otherwise now" >&2; cat log >&2; exit 1; }
