#!/usr/bin/env bash
# Fixed addresses, names forward and reverse, short and qualified, IPv4 and IPv6, from every host.
. "$(dirname "$0")/lib.sh"

network h1 fixed --subnet 10.77.0.0/16 --subnet fd77::/64 --ip-range 10.77.8.0/21 --aux-address printer=10.77.0.9
everywhere fixed
web h1 server "at a fixed address" --network fixed --ip 10.77.5.5 --ip fd77::55 --alias web.local
for n in 1 2 3 4; do box "h$n" "asks-$n" --network fixed -- sleep 3600; done

for n in 1 2 3 4; do
    until_ok "names arrive on h$n" in_box "h$n" "asks-$n" getent hosts server
    says "h$n: dig, IPv4" 10.77.5.5 in_box "h$n" "asks-$n" dig +short server A
    says "h$n: dig, IPv6" fd77::55 in_box "h$n" "asks-$n" dig +short server.fixed AAAA
    says "h$n: the reverse of IPv4" server.fixed. in_box "h$n" "asks-$n" dig +short -x 10.77.5.5
    says "h$n: the reverse of IPv6" server.fixed. in_box "h$n" "asks-$n" dig +short -x fd77::55
    says "h$n: getent" server in_box "h$n" "asks-$n" getent hosts server
    says "h$n: curl -4 by its name" "at a fixed address" in_box "h$n" "asks-$n" curl -4 -sS --fail --max-time 5 http://server/
    says "h$n: curl -6 by its alias" "at a fixed address" in_box "h$n" "asks-$n" curl -6 -sS --fail --max-time 5 http://web.local/
    ok "h$n: ping -4 by name" in_box "h$n" "asks-$n" ping -4 -c 1 -W 5 server
    ok "h$n: ping -6 by name" in_box "h$n" "asks-$n" ping -6 -c 1 -W 5 server.fixed
done
status_of 125 "a taken address is refused" vx h3 run -d --name twice --network fixed --ip 10.77.5.5 -- sleep 1
grep -q server "$OUT" && echo "ok      which names its holder"
status_of 125 "an address outside is refused" vx h3 run -d --name beside --network fixed --ip 10.78.0.1 -- sleep 1
grep -q "in no subnet" "$OUT" && echo "ok      and says why"
