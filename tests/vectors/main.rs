//! Bytes that others computed, run through our code.

// A test target is always built for tests; the attribute is what clippy goes by.
#[cfg(test)]
mod frames;
#[cfg(test)]
mod noise;
#[cfg(test)]
mod plain;
