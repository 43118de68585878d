#!/usr/bin/env bash
# faketime 0.9.10-2.1 (Debian 12) in PID namespaces that share /dev/shm.
#
# The wrapper names a semaphore and a shared memory by its own process id. Hosts made of namespaces,
# and containers with a common IPC namespace or /dev/shm, have the same small ids again and again:
#
# 1. Of two wrappers with one id at the same time the second fails with `sem_open: File exists`, and
#    says that the platform does not support semaphores. The command is not run.
# 2. A wrapper that was killed leaves its files behind. Each later one with its id fails in the same
#    way, when no other runs, until somebody removes the files.
#
# With a /dev/shm of its own for each host there is neither. Needs root, for namespaces, and the
# Debian 12 package sources.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q faketime=0.9.10-2.1 libfaketime=0.9.10-2.1 >/dev/null
for package in ./*.deb; do dpkg-deb -x "$package" .; done
export PATH="$dir/usr/bin:$PATH" DIR="$dir"

cat >host.sh <<'SH'
# A host of its own: process 1, and this machine's /dev/shm or what stands for it.
exec unshare --pid --fork --mount-proc --kill-child faketime -f +1h sh -c "$1"
SH
cat >hosts.sh <<'SH'
set -u
mount -t tmpfs none /dev/shm
host() { sh "$DIR/host.sh" "$1"; }
host 'echo first runs; touch "$DIR/runs"; sleep 3' &
while ! [ -e "$DIR/runs" ]; do sleep 0.1; done
host 'echo second runs' 2>&1 | head -1
wait
host 'echo alone: runs'
sh "$DIR/host.sh" 'touch "$DIR/again"; sleep 60' & killed=$!
while ! [ -e "$DIR/again" ]; do sleep 0.1; done
kill -9 "$killed"; wait "$killed" 2>/dev/null
ls /dev/shm | sed 's/^/left: /'
host 'echo after a killed one: runs' 2>&1 | head -1
rm /dev/shm/*
host 'echo without its files: runs'
SH
unshare --mount bash hosts.sh >seen 2>/dev/null || true

cat >expected <<'TXT'
first runs
faketime: sem_open: File exists
alone: runs
left: faketime_shm_1
left: sem.faketime_sem_1
faketime: sem_open: File exists
without its files: runs
TXT
cat seen
diff expected seen
echo "as described"
