//! placeholder: lab
