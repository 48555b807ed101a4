//! Recurring pushes: when a slot is due.
