//! What `info` promises: an operator sees what the store is and how well it is.

use windlass_core::view::Health;

use super::harness::{Harness, answer};

/// A store names itself, and says in words what a push survives.
pub async fn a_store_says_what_it_is(h: &Harness) {
    let info = answer(h.store.info().await);
    assert!(!info.kind.is_empty() && info.kind.chars().all(|char| char.is_ascii_lowercase()), "{}", info.kind);
    assert!(!info.location.is_empty() && !info.durability.is_empty());
}

/// A store that works finds nothing wrong with itself, and every check says what was seen.
pub async fn a_healthy_store_finds_nothing_wrong(h: &Harness) {
    let checks = answer(h.store.info().await).checks;
    assert!(!checks.is_empty());
    for check in checks {
        assert_ne!(check.health, Health::Bad, "{}: {}", check.name, check.detail);
        assert!(!check.detail.is_empty(), "{}", check.name);
    }
}
