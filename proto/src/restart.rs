//! Whether and when a command that ended is started again.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// The wait after the first end.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A command that ran this long begins anew with the first wait.
const STEADY: Duration = Duration::from_secs(10);

/// What is done when a sandbox's command has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again unless its exit status was 0.
    OnFailure,
    /// It is started again.
    Always,
}

impl RestartPolicy {
    /// Whether a command that ended with this status is started again. Nobody knows the status of
    /// what ended with its host.
    #[must_use]
    pub fn restarts(self, status: Option<u8>) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure => status != Some(0),
            Self::Always => true,
        }
    }

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }

    /// Whether a command is never started again.
    #[must_use]
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::No, Self::OnFailure, Self::Always];
        let found = all.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| "write no, on-failure or always".to_owned())
    }
}

/// How long is waited before the next start: twice as long each time, from the beginning after a
/// command that ran well.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after a command that ran this long.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_looks_at_the_exit_status() {
        use RestartPolicy::{Always, No, OnFailure};
        for (policy, status, restarts) in [
            (No, Some(1), false),
            (No, None, false),
            (OnFailure, Some(0), false),
            (OnFailure, Some(1), true),
            (OnFailure, Some(137), true),
            (OnFailure, None, true),
            (Always, Some(0), true),
            (Always, None, true),
        ] {
            assert_eq!(policy.restarts(status), restarts, "{policy} {status:?}");
        }
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        for policy in [RestartPolicy::No, RestartPolicy::OnFailure, RestartPolicy::Always] {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        assert!("unless-stopped".parse::<RestartPolicy>().is_err());
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let mut wait = |ran: f64| backoff.after(Duration::from_secs_f64(ran)).as_millis();
        let waits: Vec<_> = (0..12).map(|_| wait(0.01)).collect();
        let wanted = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000];
        assert_eq!(waits, wanted);
        assert_eq!(wait(9.9), 60_000);
        assert_eq!(wait(10.0), 100);
        assert_eq!(wait(0.0), 200);
    }
}
