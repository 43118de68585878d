//! Owns the wish of the user to stop: SIGINT, SIGTERM or SIGHUP while a lab is made.
//!
//! Work asks between its steps and while it waits, never in the middle of a step, so that what it
//! made is known when it is undone. Once watched, the signals end nothing by themselves: the
//! undoing cannot be interrupted.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::api::{ApiError, ErrorCode};

/// Knows whether the user wants to stop.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Starts to watch for the signals.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub(super) fn watch() -> io::Result<Self> {
        let (wanted, receiver) = watch::channel(false);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            wanted.send_replace(true);
            // A closed channel would look like an endless stream of changes to those who wait.
            wanted.closed().await;
        });
        Ok(Self(receiver))
    }

    /// Fails if the user wants to stop.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if *self.0.borrow() { Err(interrupted()) } else { Ok(()) }
    }

    /// Waits, or fails as soon as the user wants to stop.
    pub(super) async fn sleep(&self, duration: Duration) -> Result<(), ApiError> {
        tokio::select! {
            () = tokio::time::sleep(duration) => Ok(()),
            why = self.wanted() => Err(why),
        }
    }

    /// Returns when the user wants to stop, with the error that says so.
    pub(super) async fn wanted(&self) -> ApiError {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|wanted| *wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
        interrupted()
    }
}

fn interrupted() -> ApiError {
    ApiError::new(ErrorCode::Failed, "interrupted", "run the command again")
}
