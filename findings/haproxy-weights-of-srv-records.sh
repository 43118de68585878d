#!/usr/bin/env bash
# HAProxy 2.6.12: what the weights of SRV records become.
#
# `server-template web 2 _http._tcp.NAME resolvers ...` takes weights from SRV records, which reach
# from 0 to 65535 (RFC 2782). HAProxy's own reach to 256, so it divides by 256 and rounds up. The
# manual does not say so. Two things follow:
# 1. Weights of 1 to 256 are all the same: 10 and 100 get equal shares. Only times 256 are they
#    what they say.
# 2. A weight of 0 takes a server out. Where all weights are 0, which the RFC recommends when there
#    is nothing to choose, HAProxy answers 503 with its servers there and well.
# Give records for HAProxy weights times 256, and never 0 to all.
#
# Seen on Debian 12, x86-64. Needs apt-get, dpkg, python3 and curl, and ports 25353 to 25361 of
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

# A name server: `_http._tcp.wA-B.test` has two records, of the weights A and B.
cat >server.py <<'PYTHON'
import socket, struct
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

def labels(text):
    return b"".join(bytes([len(it)]) + it.encode() for it in text.split(".")) + b"\0"

class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

for port in (25354, 25355):
    Thread(target=HTTPServer(("127.0.0.1", port), Page).serve_forever, daemon=True).start()
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 25353))
while True:
    query, asker = names.recvfrom(4096)
    at, asked = 12, []
    while query[at]:
        asked.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question, kind = query[12:at + 5], struct.unpack("!H", query[at + 1:at + 3])[0]
    answers = []
    if kind == 33 and asked[0] == "_http":
        for weight, port in zip(asked[2][1:].split("-"), (25354, 25355)):
            data = struct.pack("!HHH", 0, int(weight), port) + labels(f"b{port}.test")
            answers.append(b"\xc0\x0c" + struct.pack("!HHIH", 33, 1, 5, len(data)) + data)
    elif kind == 1:
        answers.append(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + bytes([127, 0, 0, 1]))
    counts = struct.pack("!HHHHH", 0x8400, 1, len(answers), 0, 0)
    names.sendto(query[:2] + counts + question + b"".join(answers), asker)
PYTHON
python3 server.py &

cat >haproxy.cfg <<'CFG'
defaults
    mode http
    timeout connect 2s
    timeout client 2s
    timeout server 2s
resolvers here
    nameserver here 127.0.0.1:25353
    timeout resolve 500ms
frontend stats
    bind 127.0.0.1:25360
    stats enable
    stats uri /
frontend web
    bind 127.0.0.1:25361
    use_backend %[req.hdr(host)]
CFG
sets="w10-100 w1-256 w2560-25600 w0-0"
for set in $sets; do
    printf 'backend %s\n    server-template web 2 _http._tcp.%s.test resolvers here resolve-prefer ipv4 init-addr none check inter 200ms\n' "$set" "$set" >>haproxy.cfg
done
"$dir/usr/sbin/haproxy" -db -f haproxy.cfg >log 2>&1 &

servers() { curl -s -m 2 'http://127.0.0.1:25360/;csv' | awk -F, '$2 ~ /^web[12]$/ && $18 ~ /UP|DRAIN/' | sort; }
for _ in $(seq 100); do
    [ "$(servers | wc -l)" -lt 8 ] || break
    sleep 0.1
done
seen=$(for set in $sets; do
    weights=$(servers | awk -F, -v set="$set" '$1 == set { print $19 }' | sort -n | xargs)
    status=$(curl -s -m 2 -o /dev/null -w '%{http_code}' -H "Host: $set" http://127.0.0.1:25361/)
    echo "$set: servers of weight $weights, status $status"
done)
want='w10-100: servers of weight 1 1, status 200
w1-256: servers of weight 1 1, status 200
w2560-25600: servers of weight 10 100, status 200
w0-0: servers of weight 0 0, status 503'
echo "$seen"
[ "$seen" = "$want" ] || { echo "HAProxy behaves otherwise now" >&2; cat log >&2; exit 1; }
