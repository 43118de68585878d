//! The running agent: builds everything, holds it together, stops it in order.
