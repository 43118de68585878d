//! The CA's key on a node that issues certificates: how it comes there and goes.
//!
//! The first node has it from the start. Another gets it from one that has it, and has it on disk
//! before it says so. When it is taken away, its file is overwritten and removed. Neither that nor
//! anything else makes a copy unlearned that somebody took.

use std::{path::Path, sync::Arc};

use super::{Credentials, IdentityError, MeshCa, files};

/// Its file in the identity directory.
pub(super) const FILE: &str = "ca.key";

impl Credentials {
    /// The CA's key, if this node has it.
    #[must_use]
    pub fn ca(&self) -> Option<Arc<MeshCa>> {
        self.ca.load_full()
    }

    /// Whether this node has the CA's key.
    #[must_use]
    pub fn is_issuer(&self) -> bool {
        self.ca.load().is_some()
    }

    /// Takes the CA's key, and keeps it. On disk when it returns.
    ///
    /// # Errors
    ///
    /// It is not the key of this mesh's CA, or cannot be written; then nothing changed.
    pub fn take_ca_key(&self, data_dir: &Path, pkcs8: &[u8]) -> Result<(), IdentityError> {
        let ca = MeshCa::load(pkcs8, &self.membership.ca)?;
        files::replace(&files::directory(data_dir).join(FILE), pkcs8)?;
        self.ca.store(Some(Arc::new(ca)));
        Ok(())
    }

    /// Forgets the CA's key. Its file is gone when it returns.
    ///
    /// # Errors
    ///
    /// The file cannot be removed; then this node still has the key.
    pub fn forget_ca_key(&self, data_dir: &Path) -> Result<(), IdentityError> {
        files::wipe(&files::directory(data_dir).join(FILE))?;
        self.ca.store(None);
        Ok(())
    }
}
