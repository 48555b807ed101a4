//! TaskIQ.
