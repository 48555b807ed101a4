//! The Redis and Valkey store of Windlass.
