//! What is known about a network: an immutable snapshot with one writer (I2).
