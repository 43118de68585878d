//! What the program does instead of a run: another measurement, and parts that it runs in the
//! sandboxes itself.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::Result;
use clap::Subcommand;

use crate::{
    bulk::{self, Way},
    datagrams, dial, flood, names, pingpong, stream, table,
};

/// Another measurement, and parts that the program runs in the sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Measures how many questions about names one core answers; needs no root
    Names(names::Options),
    /// Answers each datagram with itself
    #[command(hide = true)]
    Pong { port: u16 },
    /// Measures round trips
    #[command(hide = true)]
    Ping { to: SocketAddrV4, seconds: u32 },
    /// Counts datagrams
    #[command(hide = true)]
    Drain { port: u16 },
    /// Sends datagrams without a pause
    #[command(hide = true)]
    Flood {
        to: SocketAddrV4,
        len: usize,
        seconds: u32,
        /// Ends when its input does, too
        #[arg(long)]
        until_told: bool,
    },
    /// Takes part in TCP of several peers at once
    #[command(hide = true)]
    BulkServer { port: u16 },
    /// Measures TCP of several peers at once
    #[command(hide = true)]
    Bulk { way: Way, seconds: u32, peers: Vec<SocketAddrV4> },
    /// Sends random bytes to all who connect, and their digest
    #[command(hide = true)]
    Source { port: u16, mebibytes: u32 },
    /// Reads and compares with the digest
    #[command(hide = true)]
    Sink { from: SocketAddrV4 },
    /// Accepts connections and ends them
    #[command(hide = true)]
    Greet { port: u16 },
    /// Begins connections
    #[command(hide = true)]
    Dial { to: SocketAddrV4, seconds: u32 },
    /// Begins so many flows of datagrams
    #[command(hide = true)]
    Open { to: SocketAddrV4, count: u16 },
    /// Says when the first datagram was answered
    #[command(hide = true)]
    Answered { to: SocketAddrV4 },
    /// Waits until nobody answers any more
    #[command(hide = true)]
    Silent { to: SocketAddrV4 },
}

impl Part {
    /// Does it; what is to be printed.
    pub(crate) fn run(self) -> Result<String> {
        let duration = |seconds: u32| Duration::from_secs(seconds.into());
        match self {
            Self::Names(options) => {
                Ok(format!("{}\n\n{}", table::machine()?, names::measure(options)?))
            }
            Self::Pong { port } => silent(pingpong::pong(port)),
            Self::Ping { to, seconds } => {
                Ok(serde_json::to_string(&pingpong::ping(to, duration(seconds))?)?)
            }
            Self::Drain { port } => silent(flood::drain(port)),
            Self::Flood { to, len, seconds, until_told } => {
                if until_told {
                    flood::listen();
                }
                Ok(serde_json::to_string(&flood::flood(to, len, duration(seconds))?)?)
            }
            Self::BulkServer { port } => silent(bulk::serve(port)),
            Self::Bulk { way, seconds, peers } => {
                Ok(serde_json::to_string(&bulk::run(&peers, way, duration(seconds))?)?)
            }
            Self::Source { port, mebibytes } => silent(stream::source(port, mebibytes)),
            Self::Sink { from } => silent(stream::sink(from)),
            Self::Greet { port } => silent(dial::greet(port)),
            Self::Dial { to, seconds } => {
                Ok(serde_json::to_string(&dial::dial(to, duration(seconds))?)?)
            }
            Self::Open { to, count } => silent(datagrams::open(to, count)),
            Self::Silent { to } => silent(datagrams::silent(to)),
            Self::Answered { to } => datagrams::answered(to).map(|time| time.to_string()),
        }
    }
}

fn silent(done: Result<()>) -> Result<String> {
    done.map(|()| String::new())
}
