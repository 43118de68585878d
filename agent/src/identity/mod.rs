//! placeholder: identity
