//! Bytes that others computed, run through our code.

mod noise;
