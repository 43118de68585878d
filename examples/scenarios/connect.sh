#!/usr/bin/env bash
# A running program gets a second network and loses it again; its first network does not notice.
. "$(dirname "$0")/lib.sh"

network h1 first
network h1 second
everywhere first
everywhere second
box h1 roamer --network first -- sleep 3600
box h2 neighbour --network first -- sleep 3600
web h3 secret "in the second network" --network second

until_ok "names arrive" in_box h1 roamer getent hosts neighbour
refused "the second network is unknown to it" in_box h1 roamer getent hosts secret
ok "connect" vx h1 network connect second roamer --alias visitor
until_ok "its names arrive" in_box h1 roamer getent hosts secret
says "it reaches the second network at once" "in the second network" in_box h1 roamer curl -sS --fail --max-time 5 http://secret/
until_ok "the alias is known there" in_box h3 secret getent hosts visitor
status_of 4 "connecting twice is a conflict" vx h1 network connect second roamer
ok "disconnect" vx h1 network disconnect second roamer
refused "the second network is gone" in_box h1 roamer getent hosts secret
no_visitor() { ! in_box h3 secret getent hosts visitor; }
until_ok "and the alias with it" no_visitor
ok "the first one is as it was" in_box h1 roamer ping -n -c 1 -W 5 neighbour
