#!/bin/sh
# Answers whoever asks at PORT with the sandbox's name and the client's address: who.sh PORT. WHO is the server (default: the example `who` of this tree).
target=$(dirname "$0")/../../target/
for who in "${WHO:-}" "${target}release/examples/who" "${target}debug/examples/who"; do
    [ ! -x "$who" ] || exec "$who" "$(hostname)" "${1:?give a port}"
done
echo "there is no server: cargo build --release --examples" >&2 && exit 1
