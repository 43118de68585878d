//! Who is in the mesh and what they claim.
#![forbid(unsafe_code)]
