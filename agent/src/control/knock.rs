//! Whether a control port answers, without a connection: a QUIC packet of a version that nobody has
//! is answered with the versions that there are (RFC 9000 section 6), by the first packet that
//! comes to the port.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::UdpSocket, time::timeout};

/// Servers answer no smaller packet (RFC 9000 section 14.1).
const LEN: usize = 1200;
/// A version that is reserved for this (RFC 9000 section 15).
const VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// The first may be lost.
const TRIES: u32 = 3;

/// Whether the port answers a stranger within this time.
pub async fn knock(addr: SocketAddr, patience: Duration) -> bool {
    let id: [u8; 8] = rand::random();
    let mut packet = vec![0xc0];
    packet.extend(VERSION);
    for _both_ends in 0..2 {
        packet.push(8);
        packet.extend(id);
    }
    packet.resize(LEN, 0);
    let local = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let Ok(socket) = UdpSocket::bind(local).await else { return false };
    if socket.connect(addr).await.is_err() {
        return false;
    }
    for _ in 0..TRIES {
        // An answer to the one before may say that the port is closed.
        if socket.send(&packet).await.is_err() {
            continue;
        }
        let mut answer = [0; 64];
        if let Ok(Ok(len)) = timeout(patience / TRIES, socket.recv(&mut answer)).await {
            return answer.get(..len).is_some_and(|answer| is_negotiation(answer, id));
        }
    }
    false
}

/// `1xxxxxxx | version 0 | length 8 | destination = our id ...`
fn is_negotiation(answer: &[u8], id: [u8; 8]) -> bool {
    let long = answer.first().is_some_and(|first| first & 0x80 != 0);
    long && answer.get(1..6) == Some(&[0, 0, 0, 0, 8]) && answer.get(6..14) == Some(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_this_very_packet_counts() {
        let answer = [[0x80, 0, 0, 0, 0, 8].as_slice(), &[7; 8], &[8, 1]].concat();
        assert!(is_negotiation(&answer, [7; 8]));
        assert!(!is_negotiation(&answer, [8; 8]));
        assert!(!is_negotiation(&answer[..10], [7; 8]));
        assert!(!is_negotiation(&[0x40, 0, 0, 0, 0, 8], [7; 8]));
        assert!(!is_negotiation(&[], [7; 8]));
    }

    #[tokio::test]
    async fn a_port_without_quic_does_not_answer() {
        let patience = Duration::from_millis(300);
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!knock(silent.local_addr().unwrap(), patience).await);
        let closed = silent.local_addr().unwrap();
        drop(silent);
        assert!(!knock(closed, patience).await);
    }
}
