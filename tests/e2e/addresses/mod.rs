//! Addresses as users ask for them: ranges, reserved ones, more subnets, rest, and what happens
//! when there are none.

mod at_once;
mod churn;
mod moves;
mod multicast;
mod pools;
