//! windlass-sqlite
