//! Headers as views over bytes.
