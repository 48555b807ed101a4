//! Bare JSON.
