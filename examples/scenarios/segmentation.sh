#!/usr/bin/env bash
# A shop in three parts on four hosts: the front end sees the application, the application sees the database, nobody else does;
# the database's network has no way out.
. "$(dirname "$0")/lib.sh"

network h1 frontend
network h2 backend --internal
everywhere frontend
everywhere backend

web h1 nginx "the front page" --network frontend
web h2 app "the application" --network frontend,backend
web h3 db "the database" --network backend
box h4 visitor --network frontend -- sleep 3600

until_ok "names arrive" in_box h4 visitor getent hosts app
says "the front end reaches the application on another host" "the application" in_box h1 nginx curl -sS --fail --max-time 5 http://app/
says "the application reaches the database" "the database" in_box h2 app curl -sS --fail --max-time 5 http://db/
says "a neighbour in the front network reaches the front page" "the front page" in_box h4 visitor curl -sS --fail --max-time 5 http://nginx.frontend/
refused "the front end does not know the database's name" in_box h1 nginx getent hosts db
db=$(json h3 '.[] | select(.name == "db") | .ips[0]' endpoint ls)
refused "nor does it reach its address" in_box h1 nginx ping -n -c 1 -W 1 "${db%/*}"
refused "the database has no way out: no default route" in_box h3 db ip route get 198.51.100.1
ok "the front end has one" in_box h1 nginx ip route get 198.51.100.1
