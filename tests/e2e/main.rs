//! Tests of the real binary and the real kernel; they need root.

mod churn;
mod lab;
mod refusals;
