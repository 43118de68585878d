#!/usr/bin/env bash
# etherparse 0.21.0 on two kinds of valid frames that tools for packets meet.
#
# 1. A length of zero. The kernel writes 0 into the length field of a BIG TCP super-frame (more than
#    64 KB), which captures on such hosts hold. SlicedPacket takes the IPv6 one (payload length 0:
#    the rest of the slice), and refuses the IPv4 one (total length 0) with an error about missing
#    bytes. LaxSlicedPacket takes both. A tool that works with IPv6 captures so fails with IPv4.
# 2. The first fragment of a packet. It has the whole TCP header, yet neither form of slicing
#    returns a transport for it: the ports have to be read out of the IP payload by hand.
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
etherparse = "=0.21.0"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use etherparse::{LaxSlicedPacket, SlicedPacket, TransportSlice};

const TCP: [u8; 20] = [0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0];

fn ethernet(ether_type: [u8; 2], ip: &[u8], payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ether_type);
    frame.extend(ip);
    frame.extend(TCP);
    frame.extend(vec![7; payload]);
    frame
}

fn ipv4(total: u16, fragment: u8, payload: usize) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 0, 0, 0, fragment, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ethernet([8, 0], &ip, payload)
}

fn ipv6(length: u16, payload: usize) -> Vec<u8> {
    let mut ip = [0; 40];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&length.to_be_bytes());
    (ip[6], ip[7], ip[8], ip[23], ip[24], ip[39]) = (6, 64, 0xfd, 1, 0xfd, 2);
    ethernet([0x86, 0xdd], &ip, payload)
}

fn tcp_payload(transport: &Option<TransportSlice<'_>>) -> String {
    match transport {
        Some(TransportSlice::Tcp(tcp)) => format!("tcp with {} bytes", tcp.payload().len()),
        Some(_) => "another transport".to_owned(),
        None => "no transport".to_owned(),
    }
}

fn show(what: &str, frame: &[u8]) {
    let strict = match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => tcp_payload(&packet.transport),
        Err(_) => "error".to_owned(),
    };
    let lax = match LaxSlicedPacket::from_ethernet(frame) {
        Ok(packet) => tcp_payload(&packet.transport),
        Err(_) => "error".to_owned(),
    };
    println!("{what}: {strict}; lax: {lax}");
}

fn main() {
    show("whole IPv4", &ipv4(140, 0, 100));
    show("IPv4 of length 0", &ipv4(0, 0, 70_000));
    show("IPv6 of length 0", &ipv6(0, 70_000));
    show("first fragment", &ipv4(140, 0x20, 100));
}
RUST
seen=$(cd "$dir" && cargo run --quiet)
want='whole IPv4: tcp with 100 bytes; lax: tcp with 100 bytes
IPv4 of length 0: error; lax: tcp with 70000 bytes
IPv6 of length 0: tcp with 70000 bytes; lax: tcp with 70000 bytes
first fragment: no transport; lax: no transport'
echo "$seen"
[ "$seen" = "$want" ] || { echo "etherparse behaves otherwise now" >&2; exit 1; }
