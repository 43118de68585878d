#!/usr/bin/env bash
# Ports of a host that lead to a sandbox: one port, a bound address, a free port; a taken port is refused.
. "$(dirname "$0")/lib.sh"

network h1 shop
everywhere shop
web h1 web "published" --network shop --publish 8080:80 --publish 127.0.0.1:8081:80 --publish :80

free=$(json h1 '.[] | select(.name == "web") | .published[] | select(.port >= 30000) | .port' sandbox ls | head -n 1)
address=$(json h1 '.[] | select(.self) | .vtep' node ls)
address=${address%:*}
until_ok "the server is up" on h1 curl -sS --fail --max-time 5 http://127.0.0.1:8080/
says "from the host itself" published on h1 curl -sS --fail --max-time 5 http://127.0.0.1:8080/
says "from another host" published on h2 curl -sS --fail --max-time 5 "http://$address:8080/"
says "from another host, at the free port $free" published on h3 curl -sS --fail --max-time 5 "http://$address:$free/"
says "from the host, at the bound address" published on h1 curl -sS --fail --max-time 5 http://127.0.0.1:8081/
refused "not from another host, at the bound address" on h2 curl -sS --fail --max-time 2 "http://$address:8081/"
status_of 125 "a taken port is refused" vx h1 run -d --name late --network shop --publish 8080:80 -- sleep 1
refused "of which nothing is left" sh -c "'$VXMESH' lab --name '$LAB' exec h1 -- vxmesh sandbox ls | grep late"
