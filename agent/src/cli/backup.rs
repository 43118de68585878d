//! `backup` and `restore`: a node in one file. The file is written and read here, where its path is
//! meant.

use serde::Serialize;
use vxmesh_proto::addr::NodeId;

use super::{
    Outcome,
    args::{Backup as Words, Global},
    membership::config,
    output::Output,
};
use crate::{
    api::{ApiError, ErrorCode},
    identity::{
        Credentials,
        backup::{Backup, BackupError},
        date,
    },
    store::Store,
};

/// What was written or restored.
#[derive(Debug, Serialize)]
struct Done {
    mesh_id: NodeId,
    node_id: NodeId,
    made_at: u64,
    issuer: bool,
}

impl From<&Backup> for Done {
    fn from(backup: &Backup) -> Self {
        Self {
            mesh_id: backup.mesh_id,
            node_id: backup.node_id,
            made_at: backup.made_at,
            issuer: backup.is_issuer(),
        }
    }
}

/// `backup`: by the agent if one runs, else of its data directory.
pub(super) async fn backup(global: &Global, output: Output, words: Words) -> Outcome {
    let client = super::client(global)?;
    let backup: Backup = if client.finds_agent().await? {
        client.get("/v1/backup").await?
    } else {
        let data_dir = config(global, words.data)?.data_dir;
        let member = Credentials::load(&data_dir).map_err(ApiError::from)?;
        // Opening the state would make it.
        member.ok_or_else(|| ApiError::from(BackupError::NoMember))?;
        let store = Store::open(&data_dir.join("state.redb"));
        let store = store.map_err(|why| ApiError::from(BackupError::from(why)))?;
        Backup::take(&data_dir, &store).map_err(ApiError::from)?
    };
    backup.write(&words.file).map_err(|why| match ApiError::from(why) {
        error if error.code == ErrorCode::Failed => ApiError {
            hint: "name a file in a directory that is there and can be written".into(),
            ..error
        },
        error => error,
    })?;
    let key = if backup.is_issuer() { " and the mesh's CA key" } else { "" };
    output.done(
        &Done::from(&backup),
        &format!("{} holds node {}{key}", words.file.display(), backup.node_id),
    )?;
    output.note("keep it secret: whoever has it is this node");
    Ok(0)
}

/// `restore`
pub(super) async fn restore(global: &Global, output: Output, words: Words) -> Outcome {
    let client = super::client(global)?;
    if client.finds_agent().await? {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "an agent runs on this host",
            "stop it, restore, and start it again",
        )
        .into());
    }
    let data_dir = config(global, words.data)?.data_dir;
    let backup = Backup::read(&words.file).map_err(ApiError::from)?;
    let left = backup.restore(&data_dir).map_err(ApiError::from)?;
    output.done(&Done::from(&backup), &format!("this host is node {} now", backup.node_id))?;
    if let Some(at) = left {
        output.warn(&format!(
            "this node left its mesh on {}, and the others do not take it back: unless it was the only one, run `vxmesh leave` when the agent runs, then join again with a new token",
            date(at)
        ));
        return Ok(0);
    }
    output.note("start the agent only if that node runs nowhere else, and never left the mesh: a node that left does not come back");
    Ok(0)
}
