//! windlass-memory
