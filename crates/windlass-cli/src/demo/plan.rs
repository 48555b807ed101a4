//! What the demo enqueues, and what the receiver is to answer. Pure: the producer, the receiver and the checks agree on it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One delivery of this many is refused for good.
const REFUSED_EVERY: u32 = 500;
/// One delivery of this many is put off the first time.
const PUT_OFF_EVERY: u32 = 50;
/// What `Retry-After` says to one that is put off.
pub(super) const PUT_OFF_BY: Duration = Duration::from_secs(1);
/// Members of the chord.
pub(super) const CHORD: u32 = 100;
/// Tasks with a time of their own.
pub(super) const DELAYED: u32 = 200;
/// When the first of them is due, and how far they are spread.
pub(super) const DELAYED_FROM: Duration = Duration::from_secs(3);
pub(super) const DELAYED_OVER: Duration = Duration::from_secs(5);
/// Tasks that are cancelled before their time.
pub(super) const CANCELLED: u32 = 100;
/// When they would be due. The demo waits for them: one that was not cancelled would be delivered.
pub(super) const CANCELLED_AFTER: Duration = Duration::from_secs(6);

/// What a request is about: the path of its URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Subject {
    /// `/deliveries/N`.
    Delivery(u32),
    /// `/delayed/N`.
    Delayed(u32),
    /// `/cancelled/N`.
    Cancelled(u32),
    /// `/chord/N`: a member, answered with its square.
    Member(u32),
    /// `/chord`: what follows when all members have ended.
    Chord,
    /// `/tick`: a slot of the schedule.
    Tick,
}

/// What the receiver is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// 200.
    Accepted,
    /// 503 with `Retry-After` the first time, then 200.
    PutOff,
    /// 400.
    Refused,
}

impl Subject {
    pub(super) fn fate(self) -> Fate {
        match self {
            Self::Delivery(number) if number % REFUSED_EVERY == REFUSED_EVERY - 1 => Fate::Refused,
            Self::Delivery(number) if number % PUT_OFF_EVERY == PUT_OFF_EVERY - 1 => Fate::PutOff,
            Self::Delivery(_) | Self::Delayed(_) | Self::Cancelled(_) | Self::Member(_) | Self::Chord | Self::Tick => {
                Fate::Accepted
            }
        }
    }
}

/// The square that a member of the chord is answered with.
pub(super) fn square(member: u32) -> u64 {
    u64::from(member) * u64::from(member)
}

/// The sum of all squares.
pub(super) fn sum_of_squares() -> u64 {
    (0..CHORD).map(square).sum()
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivery(number) => write!(f, "/deliveries/{number}"),
            Self::Delayed(number) => write!(f, "/delayed/{number}"),
            Self::Cancelled(number) => write!(f, "/cancelled/{number}"),
            Self::Member(number) => write!(f, "/chord/{number}"),
            Self::Chord => f.write_str("/chord"),
            Self::Tick => f.write_str("/tick"),
        }
    }
}

/// A path that the demo does not use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownSubject;

impl FromStr for Subject {
    type Err = UnknownSubject;
    fn from_str(path: &str) -> Result<Self, UnknownSubject> {
        let number = |text: &str| text.parse().map_err(|_| UnknownSubject);
        match path.split('/').collect::<Vec<_>>()[..] {
            ["", "deliveries", text] => number(text).map(Self::Delivery),
            ["", "delayed", text] => number(text).map(Self::Delayed),
            ["", "cancelled", text] => number(text).map(Self::Cancelled),
            ["", "chord", text] => number(text).map(Self::Member),
            ["", "chord"] => Ok(Self::Chord),
            ["", "tick"] => Ok(Self::Tick),
            _ => Err(UnknownSubject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_known_by_its_path() {
        for subject in [
            Subject::Delivery(7),
            Subject::Delayed(7),
            Subject::Cancelled(7),
            Subject::Member(7),
            Subject::Chord,
            Subject::Tick,
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        assert_eq!("/favicon.ico".parse::<Subject>(), Err(UnknownSubject));
        assert_eq!("/deliveries/x".parse::<Subject>(), Err(UnknownSubject));
    }

    #[test]
    fn one_in_fifty_is_put_off_and_one_in_five_hundred_is_refused() {
        let count = |fate| (0..20_000).filter(|number| Subject::Delivery(*number).fate() == fate).count();
        assert_eq!((count(Fate::PutOff), count(Fate::Refused)), (360, 40));
    }
}
