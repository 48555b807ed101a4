//! The marker that excuses one line from one rule: `tidy: allow(RULE): reason`.

/// Whether the line, counted from 1, carries the marker for `rule` with a reason, on itself or in the comment lines
/// right above it.
pub(super) fn is_excused(lines: &[&str], line: usize, rule: &str) -> bool {
    let marker = format!("tidy: allow({rule}):");
    let excuses = |text: &str| text.split_once(&marker).is_some_and(|(_, reason)| reason.trim().len() >= 8);
    let above = lines[..line - 1].iter().rev().take_while(|text| text.trim_start().starts_with("//"));
    excuses(lines[line - 1]) || above.into_iter().any(|text| excuses(text))
}

/// What to tell the reader of a finding about the marker.
pub(super) fn hint(rule: &str) -> String {
    format!("or keep it with a comment `tidy: allow({rule}): the reason`")
}

#[cfg(test)]
mod tests {
    use super::is_excused;

    #[test]
    fn a_marker_counts_on_the_line_and_in_the_comment_above() {
        assert!(is_excused(&["x(); // tidy: allow(sleep): the peer has no event"], 1, "sleep"));
        assert!(is_excused(&["// tidy: allow(sleep): the peer", "// has no event to wait for", "x();"], 3, "sleep"));
    }

    #[test]
    fn a_marker_without_a_reason_or_for_another_rule_excuses_nothing() {
        assert!(!is_excused(&["x(); // tidy: allow(sleep):"], 1, "sleep"));
        assert!(!is_excused(&["x(); // tidy: allow(print): for the reader"], 1, "sleep"));
        assert!(!is_excused(&["// tidy: allow(sleep): the peer has no event", "y();", "x();"], 3, "sleep"));
    }
}
