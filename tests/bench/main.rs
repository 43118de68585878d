//! `make bench`: what the encrypted tunnel costs beside the kernel's own VXLAN, measured on this
//! machine in one run.
//!
//! ```text
//! bare     host - underlay - host
//! kernel   sandbox - bridge - vxlan device - underlay - vxlan device - bridge - sandbox
//! tunnel   sandbox - bridge - TAP - agent  - underlay - agent - TAP - bridge - sandbox
//! ```
//!
//! Other tunnels take part in the same rounds (`--peers`). All of them live on the two hosts of a
//! lab. In every round each subject takes its turn (A B C, A B C), so that a change of the
//! machine's load meets them all, and a ratio is always that of two neighbours in time. Nothing
//! that is measured is kept beyond the run, and the lab goes however it ends.

mod bulk;
mod datagrams;
mod dial;
mod flood;
mod footprint;
mod lab;
mod load;
mod many;
mod names;
mod part;
mod peer;
mod pingpong;
mod report;
mod service;
mod star;
mod stream;
mod subject;
mod table;

use std::{mem, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use self::{
    lab::Lab,
    load::{Metric, Tcp},
    part::Part,
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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Underlays to measure on [default: both]
    #[arg(long)]
    underlay: Vec<Underlay>,
    /// Loads to measure [default: all but overload and service]
    #[arg(long)]
    load: Vec<Load>,
    /// Other tunnels to measure: their names, `default`, `all` or `none`; what is missing is
    /// installed
    #[arg(long, value_delimiter = ',', default_value = "default")]
    peers: Vec<String>,
    /// Write the result into performance.md of this directory, too, and its pictures below it
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
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

/// What a subject is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// TCP by iperf3
    Tcp,
    /// Datagrams as fast as they can be sent
    Udp,
    /// Round trips, one at a time
    Ping,
    /// Round trips beside one TCP stream
    LoadedPing,
    /// TCP of several peers at once, on five hosts
    Many,
    /// TCP beside a flood of datagrams, on five hosts
    Overload,
    /// All of two hosts by the address of a service, beside what is sent directly
    Service,
}

impl Load {
    const DEFAULT: [Self; 5] = [Self::Tcp, Self::Udp, Self::Ping, Self::LoadedPing, Self::Many];

    /// Whether two hosts are enough, as they are for other tunnels.
    const fn is_of_two(self) -> bool {
        match self {
            Self::Tcp | Self::Udp | Self::Ping | Self::LoadedPing => true,
            Self::Many | Self::Overload | Self::Service => false,
        }
    }
}

impl Underlay {
    /// As it is written in tables and names of files.
    const fn name(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Wire => "wire",
        }
    }
}

impl Args {
    fn underlays(&self) -> &[Underlay] {
        match self.underlay.as_slice() {
            [] => &[Underlay::Offload, Underlay::Wire],
            some => some,
        }
    }
}

#[expect(clippy::print_stdout, reason = "the tables are what the program is for")]
fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(part) = args.part {
        println!("{}", part.run()?);
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "namespaces need root: sudo make bench");
    lab::take_down_on_signals()?;

    let mut text =
        format!("{}, `--rounds {} --seconds {}`.\n", table::machine()?, args.rounds, args.seconds);
    let loads = if args.load.is_empty() { Load::DEFAULT.as_slice() } else { &args.load };
    let (of_two, others): (Vec<Load>, Vec<Load>) = loads.iter().partition(|load| load.is_of_two());
    let (of_service, of_five): (Vec<Load>, Vec<Load>) =
        others.into_iter().partition(|load| *load == Load::Service);
    let tables = if of_two.is_empty() { Vec::new() } else { measure(&args, &of_two, &mut text)? };
    if !of_five.is_empty() {
        text.push_str(&many::measure(&args, &of_five)?);
    }
    if !of_service.is_empty() {
        text.push_str(&service::measure(&args)?);
    }
    if !args.no_footprint {
        text.push_str(&format!("\n{}", footprint::measure(&args.vxmesh)?));
    }
    println!("{text}");
    match &args.write {
        Some(docs) => report::write(docs, &text, &tables),
        None => Ok(()),
    }
}

/// All tables with the names of their underlays; `text` becomes what there is to say.
fn measure(args: &Args, loads: &[Load], text: &mut String) -> Result<Vec<(String, Table)>> {
    let labs = [&args.vxmesh].into_iter().chain(&args.against);
    let labs = labs.map(|binary| Lab::up(binary, 2)).collect::<Result<Vec<_>>>()?;
    let mut subjects = subjects(&labs, &args.peers, text)?;
    let mut tables = Vec::new();
    for underlay in args.underlays() {
        for lab in &labs {
            lab.set_underlay(*underlay)?;
        }
        let name = underlay.name();
        let mut table = Table::new("kernel");
        for round in 1..=args.rounds {
            for subject in mem::take(&mut subjects) {
                eprint_step(&format!("{name}, round {round}, {}", subject.label()));
                let turns = loads
                    .iter()
                    .try_for_each(|load| turn(&subject, *load, args.seconds, &mut table));
                match turns.and_then(|()| resident(&subject, &mut table)) {
                    Ok(()) => subjects.push(subject),
                    Err(error) if subject.is_peer() => {
                        let label = subject.label();
                        let gone = format!("{label} failed in round {round} of {name}: {error:#}");
                        eprint_step(&gone);
                        text.push_str(&format!("\n{}\n", table::one_line(&gone)));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        text.push_str(&format!("\nUnderlay {name}:\n\n{table}"));
        tables.push((name.to_owned(), table));
    }
    Ok(tables)
}

/// Everything that takes its turn in a round. A peer that does not come up is left out and told.
fn subjects<'l>(labs: &'l [Lab], peers: &[String], text: &mut String) -> Result<Vec<Subject<'l>>> {
    let peers = peer::chosen(peers)?;
    let first = labs.first().context("no lab")?;
    let mut subjects = vec![
        Subject::bare(first, Ipv4Addr::new(10, 213, 0, 2))?,
        Subject::kernel(first)?,
        Subject::tunnel(first, "tunnel")?,
    ];
    for (lab, label) in labs.iter().zip(lab::labels(labs)).skip(1) {
        subjects.push(Subject::tunnel(lab, &label)?);
    }
    for subject in &subjects {
        eprint_step(&format!("{}: a random stream keeps its SHA-256", subject.label()));
        subject.check_stream()?;
    }
    if !peers.is_empty() {
        text.push_str("\n| peer | version | carries | sealed with |\n|---|---|---|---|\n");
    }
    for peer in peers {
        eprint_step(&format!("{}: brought up", peer.name()));
        let up = peer.install().and_then(|version| {
            let subject = Subject::peer(first, peer)?;
            eprint_step(&format!("{}: a random stream keeps its SHA-256", peer.name()));
            subject.check_stream()?;
            Ok((version, subject))
        });
        match up {
            Ok((version, subject)) => {
                let row = [peer.name(), &version, peer.carries(), peer.cipher].join(" | ");
                text.push_str(&format!("| {row} |\n"));
                subjects.push(subject);
            }
            Err(error) => {
                eprint_step(&format!("{} is left out: {error:#}", peer.name()));
                let why = table::one_line(&format!("not measured: {error:#}"));
                text.push_str(&format!("| {} | {why} | | |\n", peer.name()));
            }
        }
    }
    Ok(subjects)
}

/// What its programs have in memory after a round.
fn resident(subject: &Subject<'_>, table: &mut Table) -> Result<()> {
    if let Some(megabytes) = subject.resident()? {
        let metric = Metric { name: "resident after load", unit: "MB a host" };
        table.add(subject.label(), metric, megabytes);
    }
    Ok(())
}

/// One subject's measurements of one round.
fn turn(subject: &Subject<'_>, load: Load, seconds: u32, table: &mut Table) -> Result<()> {
    let mut add = |name, unit, value| table.add(subject.label(), Metric { name, unit }, value);
    match load {
        Load::Tcp => {
            let all = [
                (Tcp { streams: 1, reverse: false }, "TCP 1"),
                (Tcp { streams: 1, reverse: true }, "TCP 1 back"),
                (Tcp { streams: 4, reverse: false }, "TCP 4"),
                (Tcp { streams: 4, reverse: true }, "TCP 4 back"),
            ];
            for (tcp, name) in all {
                let run = subject.tcp(tcp, seconds)?;
                add(name, "Gbit/s", run.gigabits);
                if (tcp.streams, tcp.reverse) == (1, false) {
                    add("machine", "CPU s/GB", run.machine_per_gigabyte);
                    add("agents", "CPU s/GB", run.agents_per_gigabyte);
                }
            }
        }
        Load::Udp => {
            for (len, name) in [(64, "UDP 64 B"), (1300, "UDP 1300 B")] {
                let run = subject.flood(len, seconds)?;
                add(name, "kpps", run.kilo_received);
                add(name, "agents, CPU us a packet", run.agents_per_packet);
            }
        }
        Load::Ping => {
            let trips = subject.ping(seconds)?;
            add("RTT p50", "us", trips.p50_us);
            add("RTT p99", "us", trips.p99_us);
        }
        Load::LoadedPing => {
            let trips = subject.ping_beside_tcp(seconds)?;
            add("RTT p50 beside TCP", "us", trips.p50_us);
            add("RTT p99 beside TCP", "us", trips.p99_us);
        }
        // On hosts of their own: see `many` and `service`.
        Load::Many | Load::Overload | Load::Service => {}
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "long work shows progress")]
fn eprint_step(what: &str) {
    eprintln!("  {what}");
}
