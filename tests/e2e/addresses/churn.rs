//! Many endpoints that come and go.
