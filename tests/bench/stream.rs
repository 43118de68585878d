//! A stream of random bytes that must arrive as it was sent: the bytes, then their SHA-256.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ring::{
    digest::{Context as Digest, SHA256, SHA256_OUTPUT_LEN},
    rand::{SecureRandom, SystemRandom},
};

const CHUNK: usize = 1 << 20;
/// A stream that stands still this long is broken.
const STALLED: Duration = Duration::from_secs(20);

/// Serves one stream after another, for ever.
pub(crate) fn source(port: u16, mebibytes: u32) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    loop {
        // Whoever goes away early has said why.
        drop(listener.accept().map_err(Into::into).and_then(|(peer, _)| send(peer, mebibytes)));
    }
}

fn send(mut to: TcpStream, mebibytes: u32) -> Result<()> {
    let random = SystemRandom::new();
    let mut digest = Digest::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    for _ in 0..mebibytes {
        random.fill(&mut chunk).ok().context("no random bytes")?;
        digest.update(&chunk);
        to.write_all(&chunk)?;
    }
    to.write_all(digest.finish().as_ref())?;
    Ok(())
}

/// Takes one stream and compares.
pub(crate) fn sink(from: SocketAddrV4) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&from.into(), STALLED)?;
    stream.set_read_timeout(Some(STALLED))?;
    compare(&mut stream)
}

/// Reads to the end; the last bytes are the digest of all before them.
fn compare(stream: &mut impl Read) -> Result<()> {
    let mut digest = Digest::new(&SHA256);
    let mut held = Vec::with_capacity(CHUNK + SHA256_OUTPUT_LEN);
    loop {
        let read = stream.take(CHUNK.try_into()?).read_to_end(&mut held)?;
        let known = held.len().saturating_sub(SHA256_OUTPUT_LEN);
        digest.update(held.get(..known).unwrap_or_default());
        held.drain(..known);
        if read == 0 {
            break;
        }
    }
    ensure!(held.len() == SHA256_OUTPUT_LEN, "the stream ended early");
    ensure!(digest.finish().as_ref() == held, "the stream arrived with other bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_changed_and_a_short_stream() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let digest = ring::digest::digest(&SHA256, &bytes);
        let good = [&bytes, digest.as_ref()].concat();
        compare(&mut good.as_slice()).unwrap();
        for at in [0, 1_500_000, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(compare(&mut bad.as_slice()).is_err(), "{at}");
        }
        assert!(compare(&mut &good[..good.len() - 1]).is_err());
        assert!(compare(&mut [].as_slice()).is_err());
    }
}
