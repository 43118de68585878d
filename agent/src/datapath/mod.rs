//! placeholder: datapath
