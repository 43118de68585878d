//! What the user says of a network with `-o` and `--ipam-opt`: [`Wish`].
//!
//! Both places say the same things, because Compose drops the one or the other. What is said twice
//! must be the same.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use serde_json::Value;
use vxmesh_proto::addr::{Name, Vni};

use super::wire::Options;
use crate::api::{ApiError, ErrorCode};

/// How Docker's own drivers call the MTU.
const MTU: &str = "com.docker.network.driver.mtu";
/// What can be said.
const KEYS: &str = "network, vni, encrypted, isolated and mtu";

/// What is known of the network that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// The name of a network of the mesh, which is joined, or made if there is none.
    pub(super) network: Option<Name>,
    /// The same by its number.
    pub(super) vni: Option<Vni>,
    pub(super) encrypted: Option<bool>,
    pub(super) isolated: Option<bool>,
    pub(super) mtu: Option<u16>,
}

impl Wish {
    /// Reads options.
    pub(super) fn of(options: &BTreeMap<String, String>) -> Result<Self, ApiError> {
        let mut wish = Self::default();
        for (key, value) in options {
            match key.as_str() {
                "network" => wish.network = Some(read(key, value)?),
                "vni" => wish.vni = Some(read(key, value)?),
                "encrypted" => wish.encrypted = Some(read(key, value)?),
                "isolated" => wish.isolated = Some(read(key, value)?),
                "mtu" | MTU => wish.mtu = Some(read(key, value)?),
                _ => return Err(usage(format!("there is no option `{key}`"), KEYS)),
            }
        }
        Ok(wish)
    }
}

fn read<T: FromStr<Err: Display>>(key: &str, value: &str) -> Result<T, ApiError> {
    value.parse().map_err(|why| usage(format!("option {key}={value}: {why}"), KEYS))
}

fn usage(message: String, keys: &str) -> ApiError {
    ApiError::new(ErrorCode::Usage, message, format!("the options are {keys}"))
}

/// Options as text; the engine sends what a user typed as such.
pub(super) fn texts(options: &Options) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    options.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// What was said in several places, as one.
pub(super) fn merged<'o>(
    all: impl IntoIterator<Item = &'o BTreeMap<String, String>>,
) -> Result<BTreeMap<String, String>, ApiError> {
    let mut merged = BTreeMap::new();
    for (key, value) in all.into_iter().flatten() {
        if let Some(other) = merged.insert(key.clone(), value.clone())
            && other != *value
        {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("option {key} is said twice: {other} and {value}"),
                "say it once, with -o or with --ipam-opt",
            ));
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_are_read_wherever_they_are_said() {
        let (here, there) = (options(&[("network", "app")]), options(&[("vni", "100")]));
        let wish = Wish::of(&merged([&here, &there, &here]).unwrap()).unwrap();
        assert_eq!(wish.network, Some("app".parse().unwrap()));
        assert_eq!(wish.vni, Vni::new(100));
        let other = options(&[("network", "other")]);
        let error = merged([&here, &other]).unwrap_err();
        assert!(error.message.contains("app") && error.message.contains("other"), "{error:?}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [("netwrk", "app"), ("vni", "0"), ("vni", "x"), ("encrypted", "2"), ("mtu", "")]
        {
            let error = Wish::of(&options(&[bad])).unwrap_err();
            assert!(error.code == ErrorCode::Usage && error.message.contains(bad.0), "{error:?}");
        }
        assert_eq!(Wish::of(&options(&[(MTU, "1300")])).unwrap().mtu, Some(1300));
    }
}
