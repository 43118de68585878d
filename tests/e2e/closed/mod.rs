//! The host stays as closed as it was: for its neighbours, and towards them.

mod promised;
mod router;
mod sources;
