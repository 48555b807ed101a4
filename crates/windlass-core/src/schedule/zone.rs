//! A time zone by name, from the database that is compiled in: every machine answers alike, whatever it has installed.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::parse::shown;

/// The longest name in the database takes 32 bytes.
const ZONE_BYTES_MAX: usize = 64;

fn database() -> &'static TimeZoneDatabase {
    static DATABASE: OnceLock<TimeZoneDatabase> = OnceLock::new();
    DATABASE.get_or_init(TimeZoneDatabase::bundled)
}

/// A time zone of the IANA database, such as `Europe/Berlin` or `UTC`; cheap to clone.
///
/// Names are read in any case and shown as the database writes them. The system's own database is never read.
///
/// ```
/// use windlass_core::schedule::Zone;
/// let zone: Zone = "europe/berlin".parse().unwrap();
/// assert_eq!(zone.to_string(), "Europe/Berlin");
/// let unknown = "Europe/Berln".parse::<Zone>().unwrap_err();
/// assert_eq!(unknown.to_string(), "unknown time zone `Europe/Berln`: did you mean `Europe/Berlin`?");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// Coordinated universal time.
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// The name as the database writes it.
    pub fn name(&self) -> &str {
        // Only zones with a name are constructed; UTC has one too.
        self.0.iana_name().unwrap_or("UTC")
    }

    pub(super) fn time_zone(&self) -> &TimeZone {
        &self.0
    }
}

impl Default for Zone {
    /// [`Zone::utc`].
    fn default() -> Self {
        Self::utc()
    }
}

impl FromStr for Zone {
    type Err = UnknownZone;
    fn from_str(text: &str) -> Result<Self, UnknownZone> {
        if text.len() > ZONE_BYTES_MAX || !text.is_ascii() {
            return Err(UnknownZone { shown: shown(text), nearest: None });
        }
        if text.eq_ignore_ascii_case("utc") || text.eq_ignore_ascii_case("z") {
            return Ok(Self::utc());
        }
        match database().get(text) {
            Ok(zone) if zone.iana_name().is_some() => Ok(Self(zone)),
            Ok(_) | Err(_) => Err(UnknownZone { shown: shown(text), nearest: nearest(text) }),
        }
    }
}

/// The known name that was most likely meant. A city alone (`Berlin`) is enough.
fn nearest(text: &str) -> Option<String> {
    let wanted = text.to_ascii_lowercase().replace(' ', "_");
    let likeness = |name: &str| {
        let name = name.to_ascii_lowercase();
        let city = name.rsplit('/').next().unwrap_or(&name);
        strsim::jaro_winkler(&wanted, &name).max(strsim::jaro_winkler(&wanted, city))
    };
    database()
        .available()
        .map(|name| (likeness(name.as_str()), name))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .filter(|(likeness, _)| *likeness > 0.8)
        .map(|(_, name)| name.as_str().to_owned())
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.name(), f)
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A time zone that the database does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownZone {
    shown: String,
    nearest: Option<String>,
}

impl fmt::Display for UnknownZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown time zone `{}`: ", self.shown)?;
        match &self.nearest {
            Some(name) => write!(f, "did you mean `{name}`?"),
            None => f.write_str("write a name of the IANA database, such as Europe/Berlin or UTC"),
        }
    }
}

impl std::error::Error for UnknownZone {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_found_in_any_case_and_shown_as_the_database_writes_it() {
        for (text, name) in [
            ("UTC", "UTC"),
            ("utc", "UTC"),
            ("america/sao_paulo", "America/Sao_Paulo"),
            ("Australia/Lord_Howe", "Australia/Lord_Howe"),
            ("Antarctica/Troll", "Antarctica/Troll"),
        ] {
            assert_eq!(text.parse::<Zone>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn an_unknown_zone_is_refused_with_the_nearest_name() {
        for (text, nearest) in [
            ("Europe/Berln", "Europe/Berlin"),
            ("berlin", "Europe/Berlin"),
            ("Kyiv", "Europe/Kyiv"),
            ("America/New York", "America/New_York"),
        ] {
            let message = text.parse::<Zone>().unwrap_err().to_string();
            assert!(message.ends_with(&format!("did you mean `{nearest}`?")), "{message}");
        }
        for text in ["", "zzzzqqqq", "../../etc/passwd", "Europe/Berlin\n", "Зона", &"A".repeat(1 << 20)] {
            let message = text.parse::<Zone>().unwrap_err().to_string();
            assert!(message.len() < 400 && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_zone_is_stored_as_its_name() {
        let zone: Zone = serde_json::from_str("\"Asia/Kathmandu\"").unwrap();
        assert_eq!(serde_json::to_string(&zone).unwrap(), "\"Asia/Kathmandu\"");
        assert!(serde_json::from_str::<Zone>("\"Mars/Olympus\"").is_err());
    }
}
