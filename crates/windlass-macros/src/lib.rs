//! derive(Task)
