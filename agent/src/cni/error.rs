//! Errors as a runtime is told them.

use std::fmt;

use serde_json::{Value, json};

use crate::api::{ApiError, ErrorCode};

/// What kind of error it is: the numbers of the specification, and from 100 on our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The version is not spoken.
    Version,
    /// The configuration has something that is not supported.
    Unsupported,
    /// The container is not known.
    Container,
    /// The environment is wrong.
    Environment,
    /// Something cannot be read or written.
    Io,
    /// What is said is no JSON, or not as it shall be.
    Decode,
    /// The configuration is wrong.
    Config,
    /// It may be different in a moment.
    Later,
    /// `STATUS`: nothing can be added.
    Unavailable,
    /// `STATUS`: and what is there reaches less.
    Limited,
    /// What is there keeps it from being done.
    Conflict,
    /// Anything else.
    Failed,
}

impl Code {
    const fn number(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::Unsupported => 2,
            Self::Container => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::Later => 11,
            Self::Unavailable => 50,
            Self::Limited => 51,
            Self::Conflict => 100,
            Self::Failed => 101,
        }
    }
}

/// Why a call is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    pub(crate) code: Code,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) details: String,
}

impl CniError {
    pub(crate) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// As a runtime reads it.
    pub(crate) fn json(&self, version: Option<&str>) -> Value {
        json!({
            "cniVersion": version.unwrap_or("1.1.0"),
            "code": self.code.number(),
            "msg": format!("vxmesh: {}", self.message),
            "details": self.details,
        })
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.details)
    }
}

impl From<ApiError> for CniError {
    fn from(error: ApiError) -> Self {
        let code = match error.code {
            ErrorCode::Failed => Code::Failed,
            ErrorCode::Usage | ErrorCode::NotFound => Code::Config,
            ErrorCode::Conflict => Code::Conflict,
            ErrorCode::Unreachable => Code::Later,
        };
        // A runtime has no flags to give.
        let socket = "with the key `socket` of the network configuration";
        let details = error.hint.replace("with --socket", socket);
        Self { code, message: error.message, details }
    }
}
