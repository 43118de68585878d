#!/usr/bin/env bash
# snow 0.10.0: who learns that a pre-shared key is missing, and when.
#
# A pattern such as IKpsk2 needs a key at place 2. Neither build_initiator() nor build_responder()
# says that none was given. The initiator writes its first message and the responder reads it, both
# without an error. Only the second message fails with MissingPsk, at the side that has no key: when
# the responder writes it, or when the initiator reads it. A key for another place counts as none.
# So a program that checks its configuration by building the state finds nothing, and the other side
# sees silence, as after a loss. Check for the key yourself before you build.
#
# Seen on Linux x86-64 with Rust 1.95. Needs cargo and the crates.io registry.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
snow = "=0.10.0"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use snow::{Builder, Error};

fn handshake(initiator_place: Option<u8>, responder_place: Option<u8>) -> Result<(), (&'static str, Error)> {
    let builder = || Builder::new("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().unwrap());
    let ours = builder().generate_keypair().unwrap();
    let theirs = builder().generate_keypair().unwrap();
    let psk = [1; 32];
    let mut initiator = builder().local_private_key(&ours.private).unwrap();
    initiator = initiator.remote_public_key(&theirs.public).unwrap();
    let mut responder = builder().local_private_key(&theirs.private).unwrap();
    if let Some(place) = initiator_place {
        initiator = initiator.psk(place, &psk).unwrap();
    }
    if let Some(place) = responder_place {
        responder = responder.psk(place, &psk).unwrap();
    }
    let mut initiator = initiator.build_initiator().map_err(|e| ("build initiator", e))?;
    let mut responder = responder.build_responder().map_err(|e| ("build responder", e))?;
    let (mut wire, mut read) = ([0; 1024], [0; 1024]);
    let len = initiator.write_message(&[], &mut wire).map_err(|e| ("write 1", e))?;
    responder.read_message(&wire[..len], &mut read).map_err(|e| ("read 1", e))?;
    let len = responder.write_message(&[], &mut wire).map_err(|e| ("write 2", e))?;
    initiator.read_message(&wire[..len], &mut read).map_err(|e| ("read 2", e))?;
    Ok(())
}

fn main() {
    println!("both at 2: {:?}", handshake(Some(2), Some(2)));
    println!("none: {:?}", handshake(None, None));
    println!("both at 1: {:?}", handshake(Some(1), Some(1)));
    println!("initiator only: {:?}", handshake(Some(2), None));
    println!("responder only: {:?}", handshake(None, Some(2)));
}
RUST
seen=$(cd "$dir" && cargo run --quiet)
want='both at 2: Ok(())
none: Err(("write 2", State(MissingPsk)))
both at 1: Err(("write 2", State(MissingPsk)))
initiator only: Err(("write 2", State(MissingPsk)))
responder only: Err(("read 2", State(MissingPsk)))'
echo "$seen"
[ "$seen" = "$want" ] || { echo "snow behaves otherwise now" >&2; exit 1; }
