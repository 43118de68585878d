//! Whether this node is no member any more: it was removed, or it left in a life that its data, an
//! older copy of that, knows nothing of. Other nodes tell it when they are met.

use tracing::warn;
use vxmesh_proto::object::ObjectId;

use super::{
    doctor::check,
    mesh::{Mesh, conflict},
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    identity::date,
};

const HINT: &str = "run `vxmesh leave`, then join again with a new token";

/// How the membership ended, and when, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departed {
    Removed(u64),
    Left(u64),
}

impl std::fmt::Display for Departed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Removed(at) => write!(f, "this node was removed from the mesh on {}", date(*at)),
            Self::Left(at) => write!(
                f,
                "this node left the mesh on {}, and its data is an older copy: a node that left does not come back",
                date(*at)
            ),
        }
    }
}

impl Departed {
    /// As `status` says it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Removed(_) => "removed",
            Self::Left(_) => "left",
        }
    }
}

impl Mesh {
    /// Whether this node is no member any more. While it leaves it is one.
    pub(super) fn departed(&self) -> Option<Departed> {
        let is_leaving = self.member.allocation.is_leaving();
        self.member.objects.read(|set| {
            let at =
                |id| set.get(&id).map(|object| (object.closed(), object.hlc().unix_ms() / 1000));
            if let Some((_, at)) = at(ObjectId::Removed(self.member.me)) {
                return Some(Departed::Removed(at));
            }
            let member =
                at(ObjectId::Member(self.member.me)).filter(|(closed, _)| *closed && !is_leaving);
            member.map(|(_, at)| Departed::Left(at))
        })
    }

    /// Refuses what only a member may do.
    pub(crate) fn check_member(&self) -> Result<(), ApiError> {
        self.departed().map_or(Ok(()), |departed| Err(conflict(departed.to_string(), HINT)))
    }

    /// Says once in the log that this node left.
    pub(super) fn tell_departed(&self) {
        if let Some(departed @ Departed::Left(_)) = self.departed()
            && self.member.logged.departed.is_first()
        {
            warn!("{departed}; {HINT}");
        }
    }

    /// What `doctor` says of it.
    pub(super) fn departed_diagnosis(&self) -> Option<Diagnosis> {
        let departed = self.departed()?;
        Some(check("membership", Health::Fail, departed.to_string(), HINT))
    }
}
