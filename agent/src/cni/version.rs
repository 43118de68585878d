//! The versions of the specification that are spoken.

use std::{fmt, str::FromStr};

use serde_json::{Value, json};

use super::error::{CniError, Code};

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(super) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            CniError::new(
                Code::Version,
                format!("version `{text}` of CNI is not spoken"),
                format!(
                    "set cniVersion of the configuration to one of {}",
                    Self::ALL.map(Self::as_str).join(", ")
                ),
            )
        })
    }
}

/// What `VERSION` is answered, to whoever asks in whatever version.
pub(crate) fn versions(asked: Option<&str>) -> Value {
    let all = Version::ALL.map(Version::as_str);
    json!({ "cniVersion": asked.unwrap_or(Version::V1_1_0.as_str()), "supportedVersions": all })
}
