//! The signals that a caller of `run` or `exec` means for the command.
//!
//! They are blocked and read from a descriptor (signalfd(2)), which tells who sent them: what the
//! terminal sends goes to its whole foreground group and has reached the command already, what a
//! process sends has not.

use std::{io, os::fd::AsFd, thread};

use futures_util::future::select_all;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tokio::{
    signal::unix::{self, SignalKind},
    sync::mpsc,
};

/// `si_code` of what the kernel sends by itself (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A signal and whether the command has got it already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caught {
    pub(super) signal: Signal,
    pub(super) from_terminal: bool,
}

/// Signals on their way; people and supervisors send one or two.
const QUEUE: usize = 16;

/// A handler for each signal: a thread takes the block off for a moment, so that its child begins
/// without it, and the signal that comes just then must not end this process.
type Handlers = Vec<(Signal, unix::Signal)>;

/// Reads the signals as they come.
#[derive(Debug)]
pub(super) struct Signals {
    caught: mpsc::Receiver<Caught>,
    handlers: Handlers,
}

/// Blocks the signals in this thread and those that it will start; call it before any other thread
/// is there.
pub(super) fn block() -> io::Result<()> {
    Ok(mask().thread_block()?)
}

/// Gives this thread, and the programs that it starts, the mask that programs expect.
pub(super) fn unblock_here() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

impl Signals {
    /// Reads the signals that [`block`] holds back, in a thread that ends with this process.
    pub(super) fn new() -> io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let descriptor = SignalFd::with_flags(&mask(), flags)?;
        let handler = |signal| Ok((signal, unix::signal(SignalKind::from_raw(signal as i32))?));
        let handlers = FORWARDED.into_iter().map(handler).collect::<io::Result<_>>()?;
        let (sender, caught) = mpsc::channel(QUEUE);
        thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(caught) = wait(&descriptor) {
                if sender.blocking_send(caught).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { caught, handlers })
    }

    /// A signal that came already.
    pub(super) fn pending(&mut self) -> Option<Signal> {
        self.caught.try_recv().ok().map(|caught| caught.signal)
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Caught {
        let handled = self.handlers.iter_mut().map(|(signal, handler)| {
            Box::pin(async move {
                handler.recv().await;
                *signal
            })
        });
        tokio::select! {
            Some(caught) = self.caught.recv() => caught,
            (signal, ..) = select_all(handled) => Caught { signal, from_terminal: false },
        }
    }
}

fn wait(descriptor: &SignalFd) -> io::Result<Caught> {
    loop {
        if let Some(caught) = read(descriptor)? {
            return Ok(caught);
        }
        let mut readable = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut readable, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
}

fn read(descriptor: &SignalFd) -> io::Result<Option<Caught>> {
    loop {
        match descriptor.read_signal() {
            Ok(None) => return Ok(None),
            Ok(Some(info)) => {
                let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
                let signal = Signal::try_from(number)?;
                return Ok(Some(Caught { signal, from_terminal: info.ssi_code == SI_KERNEL }));
            }
            Err(Errno::EINTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
}

fn mask() -> SigSet {
    FORWARDED.into_iter().collect()
}
