//! Clients that do the same again and again, and servers that answer them.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh_tests::netns::NetNs;

const PATIENCE: Duration = Duration::from_secs(30);

/// Says back what it hears, to all who connect.
pub(super) fn serve(netns: &NetNs, port: u16) -> Result<()> {
    let listener = netns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?))?;
    // It ends with the test.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || say_back(stream));
        }
    });
    Ok(())
}

/// Says back what it hears, until there is nothing more.
pub(super) fn say_back(mut stream: TcpStream) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(len @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(bytes.get(..len).unwrap_or_default()).is_err() {
            return;
        }
    }
}

/// What a client does again and again until it ends, and how often it has.
pub(super) struct Client {
    ends: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    why: Arc<Mutex<Option<String>>>,
    client: JoinHandle<Result<Duration>>,
}

impl Client {
    /// The longest time that a turn took is what it ends with.
    pub(super) fn start(
        netns: &NetNs,
        mut turn: impl FnMut() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (ends, done): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let why: Arc<Mutex<Option<String>>> = Arc::default();
        let (end, count, netns) = (Arc::clone(&ends), Arc::clone(&done), netns.try_clone()?);
        let said = Arc::clone(&why);
        let run = move || {
            let mut longest = Duration::ZERO;
            while !end.load(Ordering::Relaxed) {
                let since = Instant::now();
                if let Err(error) = turn() {
                    let why = format!("after {:.1?}: {error:#}", since.elapsed());
                    *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                    return Err(error);
                }
                longest = longest.max(since.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(longest)
        };
        Ok(Self { ends, done, why, client: thread::spawn(move || netns.run(run)) })
    }

    pub(super) fn done(&self) -> Result<u64> {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(why.is_none(), "a client ended {}", why.unwrap_or_default());
        Ok(self.done.load(Ordering::Relaxed))
    }

    pub(super) fn end(self) -> Result<Duration> {
        self.ends.store(true, Ordering::Relaxed);
        self.client.join().ok().context("a client panicked")?
    }
}

pub(super) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).context("a connection")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends data and hears it again.
pub(super) fn echo(stream: &mut TcpStream, data: &[u8]) -> Result<()> {
    stream.write_all(data)?;
    let mut got = vec![0; data.len()];
    stream.read_exact(&mut got)?;
    ensure!(got == data, "other bytes came back");
    Ok(())
}
