//! The built program and the real admin API, with an agent behind it that is a few objects in
//! memory.

// The attribute tells clippy that these are tests.
#[cfg(test)]
mod admin;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod objects;
#[cfg(test)]
mod run;
#[cfg(test)]
mod world;
