//! `--rate`: not faster than this.

use std::str::FromStr;
use std::time::Duration;

/// So many tasks in so long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    count: u64,
    per: Duration,
}

impl Rate {
    /// How many may have been enqueued `elapsed` after the first one. Never more than the rate allows in any window.
    pub(super) fn allowed(self, elapsed: Duration) -> u64 {
        let passed = elapsed.as_nanos() * u128::from(self.count) / self.per.as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// How long after the first one the task of this number, from 0, may follow.
    pub(crate) fn opens(self, number: u64) -> Duration {
        let nanos = u128::from(number) * self.per.as_nanos() / u128::from(self.count);
        // Rounded up, so that the task is allowed when the wait is over.
        Duration::from_nanos(u64::try_from(nanos + 1).unwrap_or(u64::MAX))
    }
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
        let per = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(WRITE_IT.to_owned()),
        };
        let count: u64 = count.trim().parse().map_err(|_| WRITE_IT.to_owned())?;
        if !(1..=1_000_000).contains(&count) {
            return Err("choose 1 to 1000000".to_owned());
        }
        Ok(Self { count, per: Duration::from_secs(per) })
    }
}

const WRITE_IT: &str = "write it as 50/s, 3000/m or 10/h";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read() {
        let rate: Rate = "50/s".parse().unwrap();
        assert_eq!((rate.count, rate.per), (50, Duration::from_secs(1)));
        assert_eq!("7".parse::<Rate>(), "7/s".parse());
        for text in ["", "x/s", "5/d", "0/s", "-1/s", "5/"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn when_the_wait_is_over_the_task_is_allowed_and_not_before() {
        for text in ["50/s", "3/s", "3000/m", "7/h", "1000000/s"] {
            let rate: Rate = text.parse().unwrap();
            for number in [1, 2, 10, 999, 12_345] {
                assert!(rate.allowed(rate.opens(number)) > number, "{text} {number}");
                let before = rate.opens(number).saturating_sub(Duration::from_nanos(2));
                assert!(rate.allowed(before) <= number, "{text} {number}");
            }
        }
        let rate: Rate = "50/s".parse().unwrap();
        assert_eq!(rate.allowed(Duration::ZERO), 1);
        assert_eq!(rate.allowed(Duration::from_secs(1)), 51);
    }
}
