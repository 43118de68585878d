//! Whether this node is no member any more: it was removed, or it left in a life that its data, an
//! older copy of that, knows nothing of. Other nodes tell it when they are met.

use super::{
    doctor::check,
    mesh::{Mesh, conflict},
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    member::departed::HINT,
};

impl Mesh {
    /// Refuses what only a member may do.
    pub(crate) fn check_member(&self) -> Result<(), ApiError> {
        self.member.departed().map_or(Ok(()), |departed| Err(conflict(departed.to_string(), HINT)))
    }

    /// What `doctor` says of it.
    pub(super) fn departed_diagnosis(&self) -> Option<Diagnosis> {
        let departed = self.member.departed()?;
        Some(check("membership", Health::Fail, departed.to_string(), HINT))
    }
}
