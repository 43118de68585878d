//! A node in one file: its identity, the CA's key if it has it, and its state.
//!
//! ```text
//! vxmesh-backup/1 <SHA-256 of the rest, hexadecimal> LF
//! {"made_at":unix seconds,"mesh_id","node_id","identity":{file: base64},"state":{table:{key: value}}}
//! ```
//!
//! The file is a secret as the identity is, and 0600. A node that is restored is the node that was:
//! it must not run twice. What it gave away since the backup was made comes back to it from the
//! other members.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use vxmesh_proto::addr::NodeId;
use zeroize::Zeroizing;

use super::{Files, IdentityError, export, files, import, refuse_member, token::sha256, unix_now};
use crate::store::{Snapshot, Store, StoreError, Table};

const MAGIC: &str = "vxmesh-backup/1 ";
/// The state of a busy host is a few MiB.
const BACKUP_LEN: u64 = 256 << 20;

/// The row that says which node left on this host.
const LEFT: &str = "left";

#[derive(Serialize, Deserialize)]
struct Left {
    node: NodeId,
    /// Unix seconds.
    at: u64,
}

/// Why there is no backup, or it was not restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// There is nothing to keep.
    #[error("this host is a member of no mesh: there is nothing to back up")]
    NoMember,
    /// Not what [`Backup::write`] wrote.
    #[error("{path} is no backup of vxmesh, or is damaged ({reason}): use another copy")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Identity, or a file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Text that is erased when it is dropped.
struct Secret(Zeroizing<String>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// What is kept. It has no form that shows it.
#[derive(Serialize, Deserialize)]
pub struct Backup {
    /// Unix seconds.
    pub made_at: u64,
    /// The mesh.
    pub mesh_id: NodeId,
    /// The node.
    pub node_id: NodeId,
    /// Base64 of each file of the identity.
    identity: BTreeMap<String, Secret>,
    state: Snapshot,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

impl Backup {
    /// Of the node in this directory, whose state is open.
    ///
    /// # Errors
    ///
    /// There is no identity, or something cannot be read.
    pub fn take(data_dir: &Path, store: &Store) -> Result<Self, BackupError> {
        let all = export(data_dir)?.ok_or(BackupError::NoMember)?;
        // Read once more: whose they are is what these very files say.
        let credentials = super::Credentials::load(data_dir)?.ok_or(BackupError::NoMember)?;
        let encoded = |(name, bytes): (String, Zeroizing<Vec<u8>>)| {
            (name, Secret(Zeroizing::new(BASE64.encode(&bytes))))
        };
        Ok(Self {
            made_at: unix_now(),
            mesh_id: credentials.membership.mesh_id,
            node_id: credentials.identity.node_id(),
            identity: all.into_iter().map(encoded).collect(),
            state: store.snapshot()?,
        })
    }

    /// Whether the CA's key is in it.
    #[must_use]
    pub fn is_issuer(&self) -> bool {
        self.identity.contains_key(super::issuer::FILE)
    }

    /// Writes it into a file that only this user can read.
    ///
    /// # Errors
    ///
    /// The file cannot be written; what was there stays.
    pub fn write(&self, path: &Path) -> Result<(), BackupError> {
        let body = serde_json::to_vec(self).map_err(StoreError::Encode)?;
        let body = Zeroizing::new(body);
        let head = format!("{MAGIC}{}\n", HEXLOWER.encode(&sha256(&body)));
        let whole = Zeroizing::new([head.as_bytes(), &body].concat());
        Ok(files::write_private(path, &whole)?)
    }

    /// Reads such a file. It must be private, as it was made.
    ///
    /// # Errors
    ///
    /// It is none, damaged, or open to others.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let damaged =
            |reason: &str| BackupError::Damaged { path: path.into(), reason: reason.into() };
        let bytes =
            files::read_up_to(path, BACKUP_LEN)?.ok_or_else(|| damaged("there is no such file"))?;
        let rest = bytes
            .strip_prefix(MAGIC.as_bytes())
            .ok_or_else(|| damaged("it does not begin as one"))?;
        let (digest, body) = rest
            .split_at_checked(64)
            .and_then(|(digest, rest)| Some((digest, rest.strip_prefix(b"\n")?)))
            .ok_or_else(|| damaged("it is cut off"))?;
        if HEXLOWER.encode(&sha256(body)).as_bytes() != digest {
            return Err(damaged("its contents are not those that were written"));
        }
        serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))
    }

    /// Makes this host the node that it was. Identity last: until then nothing is a member. Gives
    /// when the node left, in Unix seconds, if it did so on this host.
    ///
    /// # Errors
    ///
    /// This host is a member already, an agent uses the state, or something cannot be written; then
    /// it is no member.
    pub fn restore(&self, data_dir: &Path) -> Result<Option<u64>, BackupError> {
        refuse_member(data_dir)?;
        let decode = |(name, Secret(text)): (&String, &Secret)| {
            let reason = || BackupError::Damaged { path: name.into(), reason: "no base64".into() };
            let bytes = BASE64.decode(text.as_bytes()).map_err(|_fault| reason())?;
            Ok((name.clone(), Zeroizing::new(bytes)))
        };
        let all = self.identity.iter().map(decode).collect::<Result<Files, BackupError>>()?;
        files::make_private(data_dir)?;
        let store = Store::open(&data_dir.join("state.redb"))?;
        let left: Option<Left> = store.get(Table::Meta, LEFT)?;
        store.restore(&self.state)?;
        drop(store);
        import(data_dir, &all)?;
        Ok(left.filter(|left| left.node == self.node_id).map(|left| left.at))
    }
}

/// Keeps that a node left, in its state, of which nothing else is left.
///
/// # Errors
///
/// The disk fails.
pub fn note_left(store: &Store, node: NodeId) -> Result<(), StoreError> {
    store.put(Table::Meta, LEFT, &Left { node, at: unix_now() })
}
