#!/usr/bin/env bash
# HAProxy and NGINX in front of a service follow its backends, and no request fails: two become four, one gets more, one is drained and removed, one is removed, one is left.
#
# WHO is the server (default: the example `who` beside VXMESH). The proxies' files are in ../config.
. "$(dirname "$0")/lib.sh"

WHO=${WHO:-$(dirname "$(command -v "$VXMESH")")/examples/who}
[ -x "$WHO" ] || {
    echo "there is no server $WHO: cargo build --release --examples" >&2
    exit 1
}
PATH=$PATH:/usr/sbin
for each in haproxy nginx; do
    command -v "$each" >/dev/null || {
        echo "there is no $each: apt-get install -y haproxy nginx-light" >&2
        exit 1
    }
done
CONFIG=$(cd "$(dirname "$0")/../config" && pwd)
FILES=/tmp/$LAB-proxies

# How a client comes to the backends: by SRV records, by the service's address, by the addresses of its backends.
WAYS=(haproxy:80 nginx:80 nginx:81)

# server NUMBER: a backend on that host.
server() { box "h$1" "web$1" --label app=web --network shop -- "$WHO" "web$1" 8080; }

# begin: what follows is measured from now.
begin() { START=${EPOCHREALTIME/[.,]/}; }

# asking WAY: a client with 50 requests a second. Each line is when it was answered, by whom, to whom, and how long that took.
asking() {
    in_box h1 c bash -c "while [ ! -e $FILES/stop ] && read -r said && read -r took; do
            echo \${EPOCHREALTIME/[.,]/} \$said \$took
        done < <(exec curl -4 -sSfN -m 10 --rate 50/s -w '%{time_total}\n' 'http://$1/?[1-100000]' 2>&1)
        kill \$!" >"$FILES/$1" &
    ASKING+=($!)
}

# last WAY BACKEND...: whether these and no others gave the last 30 answers.
last() { [ "$(tail -n 30 "$FILES/$1" | cut -d' ' -f2 | sort -u | xargs)" = "${*:2}" ]; }

# first WAY BACKEND, gone WAY BACKEND: how many seconds after START its first answer came, or its last one.
first() { awk -v start="$START" -v name="$2" '$1 > start && $2 == name { printf "%.1f", ($1 - start) / 1e6; exit }' "$FILES/$1"; }
gone() { awk -v start="$START" -v name="$2" '$1 > start && $2 == name { last = $1 - start } END { printf "%.1f", last / 1e6 }' "$FILES/$1"; }

# follow TEXT first|gone BACKEND LEFT...: all ways lead to those that are left and to no others; tells since when to one, or no more.
follow() {
    local text=$1 when=$2 one=$3 way
    shift 3
    for way in "${WAYS[@]}"; do until_ok "$text: $way follows" last "$way" "$@"; done
    echo "ok      $text"
    for way in "${WAYS[@]}"; do echo "        $way: $("$when" "$way" "$one") s"; done
}

# none_of BACKEND: whether no way has led to it since START.
none_of() {
    local way
    for way in "${WAYS[@]}"; do [ "$(gone "$way" "$1")" = 0.0 ] || return 1; done
}

# share WAY BACKEND LEAST MOST: how many of the last 60 answers it gave.
share() { tail -n 60 "$FILES/$1" | awk -v name="$2" -v least="$3" -v most="$4" '$2 == name { given++ } END { exit given < least || given > most }'; }

away() {
    local each
    touch "$FILES/stop"
    for each in "${ASKING[@]}"; do wait "$each" || true; done
    vx h1 service rm web >/dev/null 2>&1 || true
    for each in "${BOXES[@]}"; do vx "${each% *}" sandbox rm "${each#* }" >/dev/null & done
    wait
    BOXES=()
    clear_away
}

ASKING=()
rm -rf "$FILES"
mkdir "$FILES"
PAGES+=("$FILES")
trap away EXIT
network h1 shop --subnet 10.79.0.0/16 --subnet fd79::/64
everywhere shop
for each in 1 2; do server "$each"; done
ok "a service is made" vx h1 service create web --network shop --port http=80:8080 --selector app=web --health tcp --health-interval 500ms
box h3 haproxy --network shop -- haproxy -db -f "$CONFIG/haproxy.cfg"
# Hosts of a lab have a /var/lib of their own.
on h4 mkdir -p /var/lib/nginx
box h4 nginx --network shop -- nginx -c "$CONFIG/nginx.conf" -g "daemon off; pid $FILES/nginx.pid;"
box h1 c --network shop -- sleep 36000
for each in "${WAYS[@]}"; do until_ok "$each answers" in_box h1 c curl -4 -sS -f -m 5 "http://$each/"; done
begin
for each in "${WAYS[@]}"; do asking "$each"; done
follow "two backends answer" first web2 web1 web2

begin
for each in 3 4; do server "$each"; done
follow "two become four" first web4 web1 web2 web3 web4

begin
ok "web1 gets three times as much as the others" vx h2 service update web --weight web1=3
until_ok "HAProxy follows" share haproxy:80 web1 29 31
until_ok "so does vxmesh itself" share nginx:80 web1 20 40
echo "ok      HAProxy follows, and so does vxmesh itself"

begin
ok "web2 is drained" vx h2 service drain web web2
follow "no way leads to it" gone web2 web1 web3 web4
begin
rm_box h2 web2
ok "nor does one while it is removed" none_of web2

begin
rm_box h3 web3
follow "web3 is removed without a drain" gone web3 web1 web4

begin
ok "web1 is drained" vx h2 service drain web web1
follow "one is left" gone web1 web4
rm_box h1 web1

touch "$FILES/stop"
for each in "${ASKING[@]}"; do wait "$each"; done
ASKING=()
for each in "${WAYS[@]}"; do
    refused "no request by $each has failed" grep -v " web[1-4] " "$FILES/$each"
    awk '$4 > slowest { slowest = $4 } END { printf "        %d requests, the slowest %.2f s\n", NR, slowest }' "$FILES/$each"
done
