#!/usr/bin/env bash
# Installs the Debian packages of the commands that are missing: install-tools.sh COMMAND:PACKAGE...
set -euo pipefail

packages=()
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
[ ${#packages[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing: ${packages[*]}; run: sudo apt-get install -y ${packages[*]}" >&2
    exit 1
fi
echo "vxmesh: installing ${packages[*]} (apt-get install -y)"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null
apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null
