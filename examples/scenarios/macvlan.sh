#!/usr/bin/env bash
# Sandboxes as hosts of their own on a physical network and on one of its VLANs. The physical network is a cable between h1 and a namespace.
. "$(dirname "$0")/lib.sh"

on h1 ip link add office type veth peer name far
on h1 ip netns add office
on h1 ip link set far netns office
on h1 ip link set office up
on h1 ip -n office link set far up
on h1 ip -n office addr add 192.0.2.1/24 dev far

network h1 office --driver macvlan -o parent=office --subnet 192.0.2.0/24 --gateway 192.0.2.1
box h1 desk --network office --ip 192.0.2.50 -- sleep 3600
until_ok "the cable is up" in_box h1 desk ping -n -c 1 -W 1 192.0.2.1
ok "the sandbox reaches the physical network" in_box h1 desk ping -n -c 1 -W 5 192.0.2.1
ok "and is reached from there, as a host of its own" on h1 ip netns exec office ping -n -c 1 -W 5 192.0.2.50

if on h1 ip -n office link add link far name far.20 type vlan id 20 2>/dev/null; then
    on h1 ip -n office link set far.20 up
    on h1 ip -n office addr add 203.0.113.1/24 dev far.20
    network h1 lab20 --driver macvlan -o parent=office.20 --subnet 203.0.113.0/24 --gateway 203.0.113.1
    box h1 bench --network lab20 -- sleep 3600
    until_ok "the VLAN is up" in_box h1 bench ping -n -c 1 -W 1 203.0.113.1
    ok "the VLAN carries the other" in_box h1 bench ping -n -c 1 -W 5 203.0.113.1
    refused "the two do not meet" in_box h1 bench ping -n -c 1 -W 1 192.0.2.50
    rm_box h1 bench
    rm_network h1 lab20
    refused "the VLAN's link goes with its network" on h1 ip link show office.20
else
    echo "--      this kernel has no VLANs (802.1Q): that part is left out"
    refused "and a network on one is refused" vx h1 network create lab20 --driver macvlan -o parent=office.20 --subnet 203.0.113.0/24
fi

refused "a parent that is not there is refused" vx h1 network create nowhere --driver macvlan -o parent=absent0
grep -q absent0 "$OUT" && echo "ok      by its name"
rm_box h1 desk
rm_network h1 office
ok "the parent stays" on h1 ip link show office
on h1 ip netns del office
