//! What the tests of several kinds share.

pub mod fuzz;
pub mod hex;
pub mod netns;
pub mod pair;
