//! `make bench`: what the encrypted tunnel costs beside the kernel's own VXLAN, measured on this machine in one run.
//!
//! ```text
//! bare     host - underlay - host
//! kernel   sandbox - bridge - vxlan device - underlay - vxlan device - bridge - sandbox
//! tunnel   sandbox - bridge - TAP - agent  - underlay - agent - TAP - bridge - sandbox
//! ```
//!
//! All of them live on the two hosts of a lab. In every round each subject takes its turn (A B C, A B C), so that a
//! change of the machine's load meets them all, and a ratio is always that of two neighbours in time. Nothing that is
//! measured is kept beyond the run, and the lab goes however it ends.

mod footprint;
mod lab;
mod load;
mod names;
mod pingpong;
mod stream;
mod subject;
mod table;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use self::{
    lab::Lab,
    load::{Metric, Tcp},
    subject::Subject,
    table::Table,
};

#[derive(Debug, Parser)]
#[command(
    about = "Measures the tunnel against the kernel's VXLAN; needs root, ip, bridge, ethtool, iperf3"
)]
struct Args {
    /// The release binary
    #[arg(long, default_value = "target/release/vxmesh")]
    vxmesh: PathBuf,
    /// Another build that is measured in the same rounds; may be given several times
    #[arg(long, value_name = "BINARY")]
    against: Vec<PathBuf>,
    /// Rounds in which every subject takes its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Underlays to measure on [default: both]
    #[arg(long)]
    underlay: Vec<Underlay>,
    /// Leave out memory, idle load and start times
    #[arg(long)]
    no_footprint: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What crosses the cable between the hosts.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Underlay {
    /// Super-packets cross it whole, as with a card that cuts tunnel packets itself
    Offload,
    /// Packets of at most 1500 bytes, cut by the kernel and glued again by the receiver
    Wire,
}

/// Another measurement, and parts that the program runs in the sandboxes.
#[derive(Debug, Subcommand)]
enum Part {
    /// Measures how many questions about names one core answers; needs no root
    Names(names::Options),
    /// Answers each datagram with itself
    #[command(hide = true)]
    Pong { port: u16 },
    /// Measures round trips
    #[command(hide = true)]
    Ping { to: SocketAddrV4, seconds: u32 },
    /// Sends random bytes to all who connect, and their digest
    #[command(hide = true)]
    Source { port: u16, mebibytes: u32 },
    /// Reads and compares with the digest
    #[command(hide = true)]
    Sink { from: SocketAddrV4 },
}

#[expect(clippy::print_stdout, reason = "the tables are what the program is for")]
fn main() -> Result<()> {
    let args = Args::parse();
    match args.part {
        Some(Part::Names(options)) => {
            println!("{}\n\n{}", table::machine()?, names::measure(options)?);
            return Ok(());
        }
        Some(Part::Pong { port }) => return pingpong::pong(port),
        Some(Part::Ping { to, seconds }) => {
            let trips = pingpong::ping(to, Duration::from_secs(seconds.into()))?;
            println!("{}", serde_json::to_string(&trips)?);
            return Ok(());
        }
        Some(Part::Source { port, mebibytes }) => return stream::source(port, mebibytes),
        Some(Part::Sink { from }) => return stream::sink(from),
        None => {}
    }
    ensure!(nix::unistd::geteuid().is_root(), "namespaces need root: sudo make bench");
    lab::take_down_on_signals()?;

    println!("{}\n", table::machine()?);
    measure(&args)?;
    if !args.no_footprint {
        println!("{}", footprint::measure(&args.vxmesh)?);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the tables are what the program is for")]
fn measure(args: &Args) -> Result<()> {
    let labs = [&args.vxmesh].into_iter().chain(&args.against);
    let labs = labs.map(|binary| Lab::up(binary, 2)).collect::<Result<Vec<_>>>()?;
    let (first, others) = labs.split_first().context("no lab")?;

    let mut subjects = vec![
        Subject::bare(first, Ipv4Addr::new(10, 213, 0, 2))?,
        Subject::kernel(first)?,
        Subject::tunnel(first, "tunnel")?,
    ];
    for lab in others {
        subjects.push(Subject::tunnel(lab, &lab.vxmesh().display().to_string())?);
    }
    for subject in &subjects {
        eprint_step(&format!("{}: a random stream keeps its SHA-256", subject.label()));
        subject.check_stream()?;
    }

    let underlays = match args.underlay.as_slice() {
        [] => &[Underlay::Offload, Underlay::Wire],
        some => some,
    };
    for underlay in underlays {
        for lab in &labs {
            lab.set_underlay(*underlay)?;
        }
        let mut table = Table::new("kernel");
        for round in 1..=args.rounds {
            for subject in &subjects {
                eprint_step(&format!("{underlay:?}, round {round}, {}", subject.label()));
                turn(subject, args.seconds, &mut table)?;
            }
        }
        println!("underlay {underlay:?}, {} rounds of {} s\n", args.rounds, args.seconds);
        println!("{table}");
    }
    Ok(())
}

/// One subject's measurements of one round.
fn turn(subject: &Subject<'_>, seconds: u32, table: &mut Table) -> Result<()> {
    let all = [
        (Tcp { streams: 1, reverse: false }, "TCP 1"),
        (Tcp { streams: 1, reverse: true }, "TCP 1 back"),
        (Tcp { streams: 4, reverse: false }, "TCP 4"),
        (Tcp { streams: 4, reverse: true }, "TCP 4 back"),
    ];
    for (tcp, name) in all {
        let run = subject.tcp(tcp, seconds)?;
        table.add(subject.label(), Metric { name, unit: "Gbit/s" }, run.gigabits);
        if (tcp.streams, tcp.reverse) == (1, false) {
            let unit = "CPU s/GB";
            table.add(subject.label(), Metric { name: "machine", unit }, run.machine_per_gigabyte);
            table.add(subject.label(), Metric { name: "agents", unit }, run.agents_per_gigabyte);
        }
    }
    let trips = subject.ping(seconds)?;
    table.add(subject.label(), Metric { name: "RTT p50", unit: "us" }, trips.p50_us);
    table.add(subject.label(), Metric { name: "RTT p99", unit: "us" }, trips.p99_us);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "long work shows progress")]
fn eprint_step(what: &str) {
    eprintln!("  {what}");
}
