//! Durable state of one agent (redb).
