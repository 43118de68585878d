//! Which queue of a TAP a frame goes to: a program of the kernel's ([`program`]) that depends on
//! nothing but the frame's flow and the port of the bridge that it came by.
//!
//! ```text
//! queue = port % shares * workers + flow % workers
//! ```
//!
//! Without one the kernel has a flow follow the queue that its answers were written to, and flows
//! that pause move: a flow's frames could overtake each other. And in one queue who sends more than
//! is taken out displaces everybody else, whatever the workers do.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::libc;
use tracing::info;

/// Any but the kernel's own would do: the program calls nothing of it.
const LICENSE: &[u8] = b"MIT\0";
/// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// One instruction (RFC 9669 section 3).
#[repr(C)]
#[derive(Clone, Copy)]
struct Step {
    code: u8,
    /// The source in the upper half, the destination in the lower.
    registers: u8,
    offset: i16,
    value: i32,
}

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD; what is missing is zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    steps: u64,
    license: u64,
}

/// The queues of a TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queues {
    /// Who read them: the flows of a port are spread over so many.
    pub workers: usize,
    /// Over how many times as many the ports are spread.
    pub shares: usize,
}

/// Shares of a TAP's queues. Each queue is a descriptor and a ring of 8 kB, so there are fewer
/// where there are many workers.
const SHARES: usize = 4;
/// Queues of one TAP, as long as each worker has two.
const MOST: usize = 16;

impl Queues {
    /// A single one.
    pub const ONE: Self = Self { workers: 1, shares: 1 };

    /// Those of a TAP that so many read.
    #[must_use]
    pub fn read_by(workers: usize) -> Self {
        let workers = workers.max(1);
        Self { workers, shares: (MOST / workers).clamp(2, SHARES) }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> usize {
        self.workers * self.shares
    }
}

/// The program for these queues, one for all TAPs; nothing where the kernel does not take it.
pub(super) fn program(queues: Queues) -> Option<Arc<OwnedFd>> {
    static PROGRAMS: Mutex<BTreeMap<Queues, Option<Arc<OwnedFd>>>> = Mutex::new(BTreeMap::new());
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = programs.entry(queues).or_insert_with(|| {
        load(queues).map(|program| program.map(Arc::new)).unwrap_or_else(|error| {
            info!(%error, "the kernel takes no program that keeps flows in order; TAPs have one queue");
            None
        })
    });
    loaded.clone()
}

/// Loads it; nothing where this machine's bytes are the other way round.
fn load(queues: Queues) -> io::Result<Option<OwnedFd>> {
    if cfg!(target_endian = "big") {
        return Ok(None);
    }
    let steps = steps(queues);
    let load = Load {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: u32::try_from(steps.len()).map_err(io::Error::other)?,
        steps: steps.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
    };
    #[expect(unsafe_code, reason = "nobody wraps bpf(2) without a loader of its own")]
    // SAFETY: the kernel reads so many bytes of `load`, and the steps and the text that it points
    // to, which outlive the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "a new descriptor is ours")]
    // SAFETY: the call gave it, and nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Some(program))
}

/// Sums up addresses, and ports where a frame surely has them, and spreads the bits. A frame that
/// is too short for a load goes to the first queue.
fn steps(queues: Queues) -> Vec<Step> {
    const PORT: u8 = 2;
    const CONTEXT: u8 = 6;
    const SUM: u8 = 7;
    /// `ingress_ifindex` of `struct __sk_buff` (linux/bpf.h): the port of the bridge.
    const PORT_AT: i16 = 36;
    let number = |number: usize| i32::try_from(number).unwrap_or(1).max(1);
    let step = |code, to: u8, from: u8, offset, value| Step {
        code,
        registers: from << 4 | to,
        offset,
        value,
    };
    let byte = |at| step(0x30, 0, 0, 0, at);
    let half = |at| step(0x28, 0, 0, 0, at);
    // A word of the frame, added to the sum.
    let add = |at| [step(0x20, 0, 0, 0, at), step(0x0f, SUM, 0, 0, 0)];
    let is = |value, skip| step(0x15, 0, 0, skip, value);
    let is_not = |value, skip| step(0x55, 0, 0, skip, value);
    let has = |bits, skip| step(0x45, 0, 0, skip, bits);
    let skip = |steps| step(0x05, 0, 0, steps, 0);

    let ports4 = add(34);
    let ipv4 = [
        &add(26)[..],
        &add(30),
        &[byte(14), is_not(0x45, 7), half(20), has(0x3fff, 5), byte(23), is(6, 1), is_not(17, 2)],
        &ports4,
    ]
    .concat();
    let addresses6 = [22, 26, 30, 34, 38, 42, 46, 50].map(add).concat();
    let ipv6 = [&addresses6[..], &[byte(20), is(6, 1), is_not(17, 2)], &add(54)].concat();
    let len = |steps: &[Step]| i16::try_from(steps.len()).unwrap_or(i16::MAX);
    let begin = [
        step(0xbf, CONTEXT, 1, 0, 0),
        step(0xb7, SUM, 0, 0, 0),
        half(12),
        is(0x0800, 2),
        is(0x86dd, 2 + len(&ipv4)),
        skip(len(&ipv4) + 1 + len(&ipv6)),
    ];
    let end = [
        // Carries and the lower 32 bits, times the golden ratio as in `proto`'s tables; the upper
        // bits are the mixed ones.
        step(0xbf, 0, SUM, 0, 0),
        step(0x77, 0, 0, 0, 32),
        step(0x0f, 0, SUM, 0, 0),
        step(0x24, 0, 0, 0, -0x61c8_864f),
        // A client's ports are often all even, and are no lower bits of the result.
        step(0x74, 0, 0, 0, 24),
        step(0x94, 0, 0, 0, number(queues.workers)),
        step(0x61, PORT, CONTEXT, PORT_AT, 0),
        step(0x94, PORT, 0, 0, number(queues.shares)),
        step(0x24, PORT, 0, 0, number(queues.workers)),
        step(0x0f, 0, PORT, 0, 0),
        step(0x95, 0, 0, 0, 0),
    ];
    [&begin[..], &ipv4, &[skip(len(&ipv6))], &ipv6, &end].concat()
}
