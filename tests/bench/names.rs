//! `vxmesh-bench names`: questions per second that one core answers, and how long an answer takes
//! at a given rate.
//!
//! The servers of several sandboxes run on one thread that is held on one core; a second thread
//! asks over loopback UDP. What is asked rotates: short and long names, both types of address,
//! reverse names, names that are not there. Each answer's code is checked.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use vxmesh::dns::{Clients, Desk, Names, Scope, Server, Snapshot, Sockets};
use vxmesh_tests::{dns, lab::percentiles};

/// After this an answer is lost.
const LOST: Duration = Duration::from_millis(500);
/// Questions under way at full speed.
const WINDOW: usize = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Questions per second at which the time of an answer is taken
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Endpoints that have names
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(10..))]
    endpoints: u16,
    /// Sandboxes that ask; each may ask 10,000 times in a second
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    sandboxes: u16,
}

/// A question, and the code of its answer.
struct Question {
    bytes: Vec<u8>,
    code: u8,
}

/// Answers of one run.
struct Run {
    took: Vec<Duration>,
    lost: usize,
    elapsed: Duration,
    /// What the servers' thread computed meanwhile.
    cpu: Duration,
}

/// Measures both, and tells in lines of text.
pub(crate) fn measure(options: Options) -> Result<String> {
    let (ready, started) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let servers = thread::Builder::new().name("names".into()).spawn(move || -> Result<()> {
        let task = hold_on_core(0)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let servers = servers(options)?;
            let addrs: Vec<SocketAddr> = servers.iter().map(|(addr, _)| *addr).collect();
            ready.send((task, addrs))?;
            // Ends with an error, as the sender is dropped and sends nothing.
            drop(stopped.await);
            Ok(())
        })
    })?;
    let (task, addrs) = started.recv().context("the servers did not start")?;
    hold_on_core(1)?;
    let sockets = addrs.iter().map(|addr| asker(*addr)).collect::<Result<Vec<_>>>()?;
    let questions = questions(options.endpoints);
    let time = Duration::from_secs(options.seconds.into());
    ask(&sockets, &questions, &task, Duration::from_millis(500), None)?;
    let paced = ask(&sockets, &questions, &task, time, Some(options.rate))?;
    let full = ask(&sockets, &questions, &task, time, None)?;
    drop(stop);
    match servers.join() {
        Ok(ended) => ended?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    let line = |what: &str, run: &Run| {
        let (p50, p99) = percentiles(&run.took);
        let seconds = run.elapsed.as_secs_f64();
        let answered = f64::from(u32::try_from(run.took.len()).unwrap_or(u32::MAX));
        format!(
            "{what}: {:.0} answers/s, p50 {} us, p99 {} us, {} lost; {:.0} % of one core, {:.1} us of CPU each\n",
            answered / seconds,
            p50.as_micros(),
            p99.as_micros(),
            run.lost,
            run.cpu.as_secs_f64() / seconds * 100.0,
            run.cpu.as_secs_f64() / answered * 1e6,
        )
    };
    let Options { rate, endpoints, sandboxes, .. } = options;
    Ok(format!(
        "{endpoints} endpoints, {sandboxes} sandboxes, {} kinds of questions\n{}{}",
        questions.len(),
        line(&format!("at {rate} questions/s"), &paced),
        line("as fast as they are answered", &full),
    ))
}

/// Keeps the calling thread on one core, if there are that many, and says where its CPU time is
/// told.
fn hold_on_core(core: usize) -> Result<String> {
    let mut set = CpuSet::new();
    set.set(core)?;
    match sched_setaffinity(Pid::from_raw(0), &set) {
        // A machine with one core has nothing to choose.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let task = fs::read_link("/proc/thread-self")?;
    Ok(format!("/proc/{}/schedstat", task.display()))
}

fn servers(options: Options) -> Result<Vec<(SocketAddr, Server)>> {
    let table = Arc::new(dns::names(options.endpoints));
    let network = table.network();
    let names = Arc::new(Names::default());
    names.publish(Snapshot {
        domains: Arc::new([table.domain().clone()].into()),
        tables: [(network, table)].into(),
        settled: true,
    });
    let server = |_| {
        let sockets = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let scope = Scope { networks: vec![network], ..Scope::default() };
        let addr = sockets.local_addr()?;
        Ok((
            addr,
            Server::start(sockets, Desk::new(Arc::clone(&names), scope, None, Clients::one()))?,
        ))
    };
    (0..options.sandboxes).map(server).collect()
}

fn asker(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn questions(endpoints: u16) -> Vec<Question> {
    let some = (0..10).map(|n| n * (endpoints / 10));
    let each = some.flat_map(|n| {
        let [high, low] = n.to_be_bytes();
        [
            question(&format!("n{n}"), 1, 0),
            question(&format!("n{n}.blue"), 28, 0),
            question(&format!("{low}.{high}.71.10.in-addr.arpa"), 12, 0),
            question(&format!("missing-{n}.blue"), 1, 3),
        ]
    });
    each.collect()
}

/// A question with EDNS, as libc sends it; its id is written later.
fn question(name: &str, kind: u8, code: u8) -> Question {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(63));
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    Question { bytes, code }
}

/// Asks for this long: so many times in a second, or with a few questions under way all the time.
fn ask(
    sockets: &[UdpSocket],
    questions: &[Question],
    task: &str,
    time: Duration,
    rate: Option<u32>,
) -> Result<Run> {
    let (begun, cpu) = (Instant::now(), cpu_time(task)?);
    // By id: one belongs to one question, and is used again long after its answer came or was lost.
    let ids = 65_536 / questions.len() * questions.len();
    let mut under_way: Vec<Option<Instant>> = vec![None; ids];
    let (mut sent, mut waiting, mut last) = (0_u32, 0_usize, begun);
    let mut run = Run { took: Vec::new(), lost: 0, elapsed: time, cpu };
    let mut buffer = [0; 2048];
    loop {
        let now = Instant::now();
        let over = now.duration_since(begun) >= time;
        if over && (waiting == 0 || now.duration_since(last) > LOST) {
            break;
        }
        let due = rate.map_or(waiting < WINDOW, |rate| {
            now.duration_since(begun).as_secs_f64() * f64::from(rate) > f64::from(sent)
        });
        if due && !over {
            let at = usize::try_from(sent)?;
            let id = at % ids;
            let mut question = questions.get(at % questions.len()).context("none")?.bytes.clone();
            question.splice(..2, u16::try_from(id)?.to_be_bytes());
            sockets.get(at % sockets.len()).context("none")?.send(&question)?;
            let slot = under_way.get_mut(id).context("no slot")?;
            if slot.replace(Instant::now()).is_some() {
                waiting -= 1;
            }
            (sent, waiting, last) = (sent + 1, waiting + 1, now);
        }
        for socket in sockets {
            let len = match socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            let [high, low, _, flags, ..] = buffer;
            let id = usize::from(u16::from_be_bytes([high, low]));
            let code = questions.get(id % questions.len()).map(|question| question.code);
            ensure!(len > 12 && code == Some(flags & 15), "a wrong answer");
            if let Some(asked) = under_way.get_mut(id).and_then(Option::take) {
                run.took.push(asked.elapsed());
                waiting -= 1;
            }
        }
    }
    run.lost = usize::try_from(sent)? - run.took.len();
    run.cpu = cpu_time(task)?.saturating_sub(run.cpu);
    Ok(run)
}

/// What a thread has computed so far (the first field of schedstat, in nanoseconds).
fn cpu_time(task: &str) -> Result<Duration> {
    let text = fs::read_to_string(task)?;
    let nanoseconds = text.split_whitespace().next().context("no schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}
