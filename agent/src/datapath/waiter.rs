//! Waiting for the next frame or datagram without sleeping where it is about to come: [`Waiter`].
//!
//! To be woken costs a thread more than all the rest of a frame's way, most of all where the CPU
//! fell asleep, too. So a thread that slept only shortly looks again and again for a moment before
//! it sleeps, and offers its CPU to others between two looks. Where somebody takes the CPU for
//! long, nobody looks for a while: whoever offers a CPU to a computation gets it back after a whole
//! time slice. Nor does anybody while bulk is carried ([`Bulk`]), which has use for every CPU and
//! keeps them awake.
//!
//! ```text
//! slept for less than SHORT  -> looks for up to LOOK, then sleeps
//! CPU gone for over TAKEN    -> sleeps at once for the next PAUSE
//! bulk within RECENT         -> sleeps at once
//! looked IN_VAIN times       -> sleeps at once for the next REST
//! ```

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, poll::PollTimeout};

/// How long it looks: longer than a round trip between neighbours takes.
const LOOK: Duration = Duration::from_micros(200);
/// After a longer sleep the next one is expected to be long, too.
const SHORT: Duration = Duration::from_micros(400);
/// A look with the offer of the CPU takes some microseconds, a time slice a millisecond or more.
const TAKEN: Duration = Duration::from_millis(1);
/// How long nobody looks after the CPU was gone.
const PAUSE: Duration = Duration::from_millis(500);

/// After so many looks in vain, one after the other, what comes does not come soon enough.
const IN_VAIN: u32 = 3;
/// For how long.
const REST: Duration = Duration::from_millis(20);
/// How long bulk that was carried keeps everybody from looking.
const RECENT: Duration = Duration::from_millis(2);

/// When some thread of the data path last carried more than single frames.
#[derive(Debug)]
pub(super) struct Bulk {
    epoch: Instant,
    /// Nanoseconds since then; 0 is never.
    last: AtomicU64,
}

impl Bulk {
    /// None was carried yet.
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Some is carried.
    pub(super) fn note(&self, now: Instant) {
        self.last.store(self.since_epoch(now), Ordering::Relaxed);
    }

    /// Whether some was carried just now.
    pub(super) fn is_recent(&self, now: Instant) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        let since = Duration::from_nanos(self.since_epoch(now).saturating_sub(last));
        last > 0 && since < RECENT
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What one thread learned of its waiting.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The last time was short.
    short: bool,
    /// Not before then.
    after: Instant,
    in_vain: u32,
}

impl Waiter {
    /// Sleeps at first.
    pub(super) fn new() -> Self {
        Self { short: false, after: Instant::now(), in_vain: 0 }
    }

    /// Waits until `ready` finds something, and gives how much. It is asked with the time for which
    /// it may sleep; `eager` says whether what comes is worth looking for.
    pub(super) fn wait(
        &mut self,
        bulk: &Bulk,
        eager: bool,
        mut ready: impl FnMut(PollTimeout) -> nix::Result<usize>,
    ) -> io::Result<usize> {
        let begin = Instant::now();
        let mut found = 0;
        if eager && self.short && begin >= self.after && !bulk.is_recent(begin) {
            found = self.look(begin, || checked(ready(PollTimeout::ZERO)))?;
        }
        if found == 0 {
            found = checked(ready(PollTimeout::NONE))?;
        }
        self.short = begin.elapsed() < SHORT;
        Ok(found)
    }

    fn look(
        &mut self,
        begin: Instant,
        mut ready: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut last = begin;
        while last.duration_since(begin) < LOOK {
            let found = ready()?;
            if found > 0 {
                self.in_vain = 0;
                return Ok(found);
            }
            thread::yield_now();
            let now = Instant::now();
            if now.duration_since(last) > TAKEN {
                self.after = now + PAUSE;
                return Ok(0);
            }
            last = now;
        }
        self.in_vain += 1;
        if self.in_vain >= IN_VAIN {
            self.in_vain = 0;
            self.after = last + REST;
        }
        Ok(0)
    }
}

/// A signal is no reason to fail.
pub(super) fn checked(found: nix::Result<usize>) -> io::Result<usize> {
    match found {
        Err(Errno::EINTR) => Ok(0),
        found => found.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits `times` times for something that is found at the third question, and gives how often
    /// it was asked with leave to sleep.
    fn slept((waiter, bulk): (&mut Waiter, &Bulk), times: usize, eager: bool) -> usize {
        let mut slept = 0;
        for _ in 0..times {
            let mut asked = 0;
            let found = waiter.wait(bulk, eager, |timeout| {
                asked += 1;
                if timeout == PollTimeout::NONE {
                    slept += 1;
                }
                Ok(usize::from(asked == 3 || timeout == PollTimeout::NONE))
            });
            assert_eq!(found.unwrap(), 1);
        }
        slept
    }

    #[test]
    fn who_slept_shortly_looks_and_who_is_not_eager_sleeps() {
        let (mut waiter, bulk) = (Waiter::new(), Bulk::new());
        assert_eq!(
            slept((&mut waiter, &bulk), 1, true),
            1,
            "it looks before it knows how long it slept"
        );
        // A machine that takes the CPU away in between makes it sleep now and then.
        assert!(slept((&mut waiter, &bulk), 50, true) < 50, "it never looks");
        assert_eq!(slept((&mut waiter, &bulk), 50, false), 50);
    }

    #[test]
    fn who_lost_the_cpu_pauses_and_who_slept_long_sleeps() {
        let (mut waiter, bulk) = (Waiter::new(), Bulk::new());
        waiter.short = true;
        waiter.after = Instant::now() + Duration::from_secs(60);
        assert_eq!(slept((&mut waiter, &bulk), 20, true), 20, "it does not pause");
        waiter.after = Instant::now();
        waiter.short = false;
        assert_eq!(slept((&mut waiter, &bulk), 1, true), 1);
        let mut looked = 0;
        waiter.short = true;
        let begin = Instant::now();
        let found = waiter.look(begin, || {
            looked += 1;
            Ok(0)
        });
        assert_eq!(found.unwrap(), 0);
        assert!(looked > 0 && begin.elapsed() >= LOOK.min(TAKEN));
        for _ in 1..IN_VAIN {
            waiter.look(Instant::now(), || Ok(0)).unwrap();
        }
        assert!(waiter.after > Instant::now(), "it goes on looking in vain");
    }

    #[test]
    fn nobody_looks_while_bulk_is_carried() {
        let (mut waiter, bulk) = (Waiter::new(), Bulk::new());
        for _ in 0..20 {
            waiter.short = true;
            bulk.note(Instant::now() + Duration::from_secs(60));
            assert_eq!(slept((&mut waiter, &bulk), 1, true), 1);
        }
        let now = Instant::now();
        assert!(!Bulk::new().is_recent(now));
        bulk.note(now);
        assert!(bulk.is_recent(now + RECENT / 2) && !bulk.is_recent(now + RECENT));
    }

    #[test]
    fn a_signal_finds_nothing_and_errors_are_told() {
        assert_eq!(checked(Err(Errno::EINTR)).unwrap(), 0);
        assert!(checked(Err(Errno::EBADF)).is_err());
        assert!(Waiter::new().wait(&Bulk::new(), true, |_| Err(Errno::EBADF)).is_err());
    }
}
