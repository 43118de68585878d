//! Owns how a failure inside a lab command becomes the error that its user sees.

use std::{fmt::Display, io::ErrorKind};

use crate::api::{ApiError, ErrorCode};

/// Says in the user's words what failed.
pub(super) trait OrFail<T> {
    /// Turns the error into one that starts with `what`.
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, ApiError>;
}

impl<T, E: Display + IsDenied> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, ApiError> {
        self.map_err(|error| failed(&what(), &error))
    }
}

/// What failed, why, and what to do.
pub(super) fn failed(what: &str, error: &(impl Display + IsDenied)) -> ApiError {
    let hint = if error.is_denied() {
        "a lab needs all of root's rights: run it as root on the machine or in a privileged container"
    } else {
        "mend that and run the command again; vxmesh lab down removes a lab in any state"
    };
    ApiError::new(ErrorCode::Failed, format!("{what}: {error}"), hint)
}

/// Tells a lack of rights, for which there is other advice, from the rest.
pub(super) trait IsDenied {
    /// Whether rights were missing.
    fn is_denied(&self) -> bool;
}

impl IsDenied for std::io::Error {
    fn is_denied(&self) -> bool {
        self.kind() == ErrorKind::PermissionDenied
    }
}

impl IsDenied for nix::errno::Errno {
    fn is_denied(&self) -> bool {
        matches!(self, Self::EPERM | Self::EACCES)
    }
}

impl IsDenied for serde_json::Error {
    fn is_denied(&self) -> bool {
        false
    }
}

impl IsDenied for super::enter::EnterError {
    fn is_denied(&self) -> bool {
        let (Self::Enter(error) | Self::Start(error)) = self;
        error.is_denied()
    }
}
