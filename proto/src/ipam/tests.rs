//! No address twice.
