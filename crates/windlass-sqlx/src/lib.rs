//! Enqueues Windlass tasks inside of an sqlx transaction.
