//! Which backend drives the TAPs: the best that the kernel grants, unless the configuration says
//! otherwise.

use std::{io, str::FromStr, thread};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use serde::Deserialize;
use tracing::debug;

use super::{device::Device, offload::OffloadTap, steering::Queues, tap::Tap};

/// The interface that is made to see what the kernel grants.
const PROBE: &str = "probe0";

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The offload backend if the kernel grants it, else tun-tap.
    #[default]
    Auto,
    /// Super-frames, see [`OffloadTap`].
    Offload,
    /// One packet per call, see [`Tap`].
    TunTap,
}

impl Backend {
    /// The names in the configuration and in `vxmesh status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Offload => "offload",
            Self::TunTap => "tun-tap",
        }
    }

    /// Makes a TAP in the calling thread's network namespace, with up to so many queues.
    ///
    /// # Errors
    /// There is no /dev/net/tun, the name is taken, or the rights are missing; or the kernel does
    /// not grant the backend.
    pub fn open(self, name: &str, queues: Queues) -> io::Result<Box<dyn Device>> {
        let plain = || Tap::open(name).map(|tap| Box::new(tap) as Box<dyn Device>);
        let offload = || OffloadTap::open(name, queues).map(|tap| Box::new(tap) as Box<dyn Device>);
        match self {
            Self::TunTap => plain(),
            Self::Offload => offload(),
            Self::Auto => match offload() {
                Err(error) if is_not_granted(&error) => {
                    debug!(%error, "no offload backend");
                    plain()
                }
                opened => opened,
            },
        }
    }

    /// What a TAP of this host can do, found out in a network namespace that is gone afterwards.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn probe(self) -> io::Result<Grants> {
        let probe = move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            self.open(PROBE, Queues::read_by(2)).map(|device| device.grants())
        };
        let thread = thread::Builder::new().name("probe".into()).spawn(probe)?;
        thread.join().map_err(|_panic| io::Error::other("the probe of the TAP panicked"))?
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Offload, Self::TunTap];
        let found = all.into_iter().find(|backend| backend.as_str() == text);
        found.ok_or_else(|| "choose auto, offload or tun-tap".to_owned())
    }
}

/// What a TAP can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// Its backend.
    pub backend: Backend,
    /// The offloads that the kernel granted it, by the names of ethtool and the kernel.
    pub offloads: Vec<&'static str>,
}

/// Whether the kernel knows no such thing, or the system lacks it, as opposed to a name that is
/// taken.
fn is_not_granted(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for backend in [Backend::Auto, Backend::Offload, Backend::TunTap] {
            assert_eq!(backend.as_str().parse(), Ok(backend));
        }
        assert!("tap".parse::<Backend>().is_err());
    }
}
