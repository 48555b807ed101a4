//! Small texts for people: how long ago, how large, how many.

use std::time::Duration;

use windlass::{Timestamp, format_duration};

/// `3m ago`, `in 2h`, `now`: the largest unit and, below ten of it, the next.
pub(crate) fn ago(at: Timestamp, now: Timestamp) -> String {
    let (distance, past) = if at <= now { (now.since(at), true) } else { (at.since(now), false) };
    if distance < Duration::from_secs(1) {
        return "now".to_owned();
    }
    let text = roughly(distance);
    if past { format!("{text} ago") } else { format!("in {text}") }
}

/// A duration in at most two units: `1h5m`, `12d`, `340ms`.
pub(crate) fn roughly(duration: Duration) -> String {
    let secs = duration.as_secs();
    let unit = match secs {
        0 => return format_duration(Duration::from_millis(duration.as_millis() as u64)),
        1..600 => 1,
        600..36_000 => 60,
        36_000..864_000 => 3_600,
        _ => 86_400,
    };
    let rounded = Duration::from_secs(secs / unit * unit);
    format_duration(rounded)
}

/// A size: `1.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// At most this many characters; the cut is marked.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The text on one line and without control characters: what a task wrote must not move the cursor of who looks.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// `1 task`, `3 tasks`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_roughly() {
        let now = Timestamp::from_secs(1_800_000_000);
        for (secs, text) in
            [(0, "now"), (3, "3s ago"), (75, "1m15s ago"), (700, "11m ago"), (3_700, "1h1m ago"), (90_000, "1d1h ago")]
        {
            assert_eq!(ago(now - Duration::from_secs(secs), now), text);
        }
        assert_eq!(ago(now + Duration::from_secs(7_200), now), "in 2h");
    }

    #[test]
    fn sizes_and_counts_are_said_as_people_do() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1_500_000), "1.4 MiB");
        assert_eq!(plural(1, "task"), "1 task");
        assert_eq!(plural(0, "task"), "0 tasks");
    }

    #[test]
    fn nothing_that_a_task_wrote_reaches_the_terminal_raw() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(cut("überlang", 4), "übe…");
    }
}
