//! How failures of identity and control look to a user: their kind, what is wrong, what to do next.

mod host;

use std::fmt::Display;

use crate::{
    api::{ApiError, ErrorCode},
    control::{ControlError, join::JoinError},
    identity::{IdentityError, backup::BackupError, token::TokenParseError},
    store::StoreError,
};

impl From<IdentityError> for ApiError {
    fn from(why: IdentityError) -> Self {
        match &why {
            IdentityError::AlreadyMember(_) => advised(ErrorCode::Conflict, &why),
            IdentityError::TooOpen { .. }
            | IdentityError::NotOurs { .. }
            | IdentityError::Symlink(_)
            | IdentityError::NotAFile(_)
            | IdentityError::Damaged { .. } => advised(ErrorCode::Failed, &why),
            IdentityError::Io { .. } => failed(
                &why,
                "the data directory must be writable: run as root, or name another --data-dir",
            ),
            IdentityError::Crypto(_) => failed(&why, "see whether the system gives random bytes"),
        }
    }
}

impl From<BackupError> for ApiError {
    fn from(why: BackupError) -> Self {
        match why {
            BackupError::NoMember => advised(ErrorCode::Conflict, &why),
            BackupError::Damaged { .. } => advised(ErrorCode::Failed, &why),
            BackupError::Identity(why) => why.into(),
            BackupError::Store(StoreError::Io { .. }) => failed(
                &why,
                "the data directory must be writable: run as root, or name another --data-dir",
            ),
            BackupError::Store(why) => advised(ErrorCode::Failed, &why),
        }
    }
}

impl From<TokenParseError> for ApiError {
    fn from(why: TokenParseError) -> Self {
        advised(ErrorCode::Usage, &why)
    }
}

impl From<JoinError> for ApiError {
    fn from(why: JoinError) -> Self {
        match why {
            JoinError::Identity(why) => why.into(),
            JoinError::Control(why) => why.into(),
            JoinError::NoServer => advised(ErrorCode::Usage, &why),
            JoinError::Resolve { .. }
            | JoinError::Unreachable { .. }
            | JoinError::OtherMesh(_)
            | JoinError::TokenUnknown
            | JoinError::TokenExpired
            | JoinError::TokenUsed
            | JoinError::NoIssuer { .. }
            | JoinError::NameTaken(_)
            | JoinError::RateLimited(_)
            | JoinError::Clock { .. }
            | JoinError::BadAnswer { .. } => advised(ErrorCode::Failed, &why),
            JoinError::ServerCertificate { .. } => {
                failed(&why, "compare the clocks of both hosts, and look into that agent's log")
            }
            JoinError::Refused { .. } => failed(&why, "look into that agent's log"),
        }
    }
}

impl From<ControlError> for ApiError {
    fn from(why: ControlError) -> Self {
        match why {
            ControlError::Identity(why) => why.into(),
            ControlError::Bind { .. } => advised(ErrorCode::Failed, &why),
            ControlError::NotConnected(_)
            | ControlError::Timeout(..)
            | ControlError::Broken { .. } => {
                failed(&why, "see `vxmesh node ls` for its state, and try again")
            }
            ControlError::Tls(_) => failed(&why, "the files in the data directory may be damaged"),
            ControlError::Codec(_) => failed(&why, "do both hosts run the same version?"),
            ControlError::Refused(_) => failed(&why, "look into the other agent's log"),
            ControlError::Stopped => failed(&why, "start the agent again"),
        }
    }
}

/// For messages that end in their own advice, behind the last colon or semicolon.
fn advised(code: ErrorCode, why: &impl Display) -> ApiError {
    let text = why.to_string();
    let end = text.rfind(": ").max(text.rfind("; "));
    match end.and_then(|at| text.split_at_checked(at)) {
        Some((message, advice)) => {
            ApiError::new(code, message, advice.trim_start_matches([':', ';', ' ']))
        }
        None => ApiError::new(code, text, "look into the agent's log"),
    }
}

fn failed(why: &impl Display, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Failed, why.to_string(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_becomes_the_hint() {
        let error: ApiError = IdentityError::AlreadyMember("/d/identity".into()).into();
        assert_eq!(error.code, ErrorCode::Conflict);
        let message = "this host is a member of a mesh already (its identity is in /d/identity)";
        assert_eq!(
            (error.message.as_str(), error.hint.as_str()),
            (message, "run `vxmesh leave` first")
        );

        let reason = "no such host: h: x".to_owned();
        let error: ApiError = JoinError::Resolve { server: "h".into(), reason }.into();
        assert_eq!(error.message, "cannot resolve `h`: no such host: h: x");
        assert_eq!(error.hint, "write HOST, HOST:PORT or [IPV6]:PORT");

        let server = "[fd00::1]:7760".parse().unwrap();
        let error: ApiError = JoinError::Unreachable { server, reason: "no answer".into() }.into();
        assert_eq!(error.message, "[fd00::1]:7760 does not answer (no answer)");
        assert_eq!(error.hint, "is an agent running there, and UDP port 7760 open?");
    }

    #[test]
    fn a_token_that_is_none_is_a_usage_error() {
        let error: ApiError = "x".parse::<crate::identity::token::Token>().unwrap_err().into();
        assert_eq!(error.code, ErrorCode::Usage);
        assert_eq!(error.message, "this is not a join token");
    }

    #[test]
    fn failures_without_advice_get_some() {
        let source = std::io::Error::other("no space left");
        let error: ApiError = IdentityError::Io { path: "/d".into(), source }.into();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Failed, "/d: no space left"));
        assert!(!error.hint.is_empty());
    }
}
