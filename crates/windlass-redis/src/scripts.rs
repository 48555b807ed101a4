//! The scripts, and what stands before each of them.

/// One script: a verb of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    Open,
    Push,
    Claim,
    Adopt,
    Renew,
    Settle,
    Read,
    Counts,
    Tick,
    Command,
    Beat,
    Schedule,
    Ring,
    Transfer,
    Import,
    Limit,
    Note,
}

const COMMON: &str = concat!(
    include_str!("lua/common.lua"),
    "\n",
    include_str!("lua/gates.lua"),
    include_str!("lua/work.lua"),
    include_str!("lua/tasks.lua")
);
const FLOW: &str = include_str!("lua/flow.lua");
const ADOPTION: &str = include_str!("lua/adoption.lua");

/// A claim, up to its answer; with what comes before anything is taken.
macro_rules! claim {
    ($($before:literal)?) => {
        concat!(
            include_str!("lua/claim.lua"),
            include_str!("lua/pass.lua"),
            include_str!("lua/take.lua"),
            include_str!("lua/turns.lua"),
            $(include_str!($before),)?
            include_str!("lua/serve.lua")
        )
    };
}

impl Script {
    pub(crate) const ALL: [Self; 17] = [
        Self::Open,
        Self::Push,
        Self::Claim,
        Self::Adopt,
        Self::Renew,
        Self::Settle,
        Self::Read,
        Self::Counts,
        Self::Tick,
        Self::Command,
        Self::Beat,
        Self::Schedule,
        Self::Ring,
        Self::Transfer,
        Self::Import,
        Self::Limit,
        Self::Note,
    ];

    /// What it is called in the library.
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Push => "push",
            Self::Claim => "claim",
            Self::Adopt => "adopt",
            Self::Renew => "renew",
            Self::Settle => "settle",
            Self::Read => "read",
            Self::Counts => "counts",
            Self::Tick => "tick",
            Self::Command => "command",
            Self::Beat => "beat",
            Self::Schedule => "schedule",
            Self::Ring => "ring",
            Self::Transfer => "transfer",
            Self::Import => "import",
            Self::Limit => "limit",
            Self::Note => "note",
        }
    }

    /// Its own part.
    fn own(self) -> &'static str {
        match self {
            Self::Open => include_str!("lua/open.lua"),
            Self::Push => include_str!("lua/push.lua"),
            Self::Claim => concat!(claim!(), "return answer"),
            Self::Adopt => concat!(claim!("lua/adopt.lua"), include_str!("lua/adopted.lua")),
            Self::Renew => include_str!("lua/renew.lua"),
            Self::Settle => include_str!("lua/settle.lua"),
            Self::Read => include_str!("lua/read.lua"),
            Self::Counts => include_str!("lua/counts.lua"),
            Self::Tick => include_str!("lua/tick.lua"),
            Self::Command => include_str!("lua/command.lua"),
            Self::Beat => include_str!("lua/beat.lua"),
            Self::Schedule => include_str!("lua/schedule.lua"),
            Self::Ring => include_str!("lua/ring.lua"),
            Self::Transfer => include_str!("lua/transfer.lua"),
            Self::Import => include_str!("lua/import.lua"),
            Self::Limit => include_str!("lua/limit.lua"),
            Self::Note => include_str!("lua/note.lua"),
        }
    }

    /// Its text for a server of this version.
    pub(crate) fn text(self, major: u32) -> String {
        let shared = match self {
            Self::Push | Self::Settle | Self::Import => FLOW,
            Self::Adopt => ADOPTION,
            _ => "",
        };
        let first = match (self.needs_memory(), major >= 7) {
            // What works off the queues may go over the limit of memory: it is what makes room.
            (false, true) => "#!lua flags=allow-oom\n",
            // An older server refuses every command that needs memory. It is asked before anything is changed.
            (false, false) if self.writes() => "redis.call('HSET', KEYS[1], 'asked', '1')\n",
            (false, false) | (true, _) => "",
        };
        let (from, till) = match self {
            // A function of its own: a text has at most two hundred local names.
            Self::Adopt => ("return (function()\n", "\nend)()"),
            _ => ("", ""),
        };
        format!("{first}{COMMON}{shared}begin()\n{from}{}{till}", self.own())
    }

    /// Whether it stores something new, which a full server refuses.
    fn needs_memory(self) -> bool {
        matches!(self, Self::Push | Self::Adopt | Self::Schedule | Self::Import)
    }

    fn writes(self) -> bool {
        self != Self::Counts
    }
}

/// All scripts as one library of functions. A script is run from its first line with every call, and half of what a small one
/// costs is to define what all of them share; a function is defined once.
pub(crate) struct Library {
    /// Differs with every other text, so that two versions of the program do not meet.
    name: String,
    pub(crate) text: String,
}

impl Library {
    pub(crate) fn new() -> Self {
        let mut body = format!("local KEYS, ARGV\n{COMMON}{FLOW}{ADOPTION}");
        for script in Script::ALL {
            // Functions of their own: a text has at most two hundred local names.
            body.extend(["local function ", script.name(), "_()\n", script.own(), "\nend\n"]);
        }
        let name = format!("windlass_{:016x}", fingerprint(&body));
        for script in Script::ALL {
            let flags = if script.needs_memory() { "" } else { "'allow-oom'" };
            let registered = format!(
                "redis.register_function{{ function_name = '{name}_{verb}', flags = {{ {flags} }}, callback = function(keys, args)\n\
                 KEYS, ARGV = keys, args\nbegin()\nreturn {verb}_()\nend }}\n",
                verb = script.name(),
            );
            body.push_str(&registered);
        }
        Self { text: format!("#!lua name={name}\n{body}"), name }
    }

    /// What the function of a script is called.
    pub(crate) fn function(&self, script: Script) -> String {
        format!("{}_{}", self.name, script.name())
    }
}

/// FNV-1a: enough to tell one text from the next.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
