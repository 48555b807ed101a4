//! The scripts, and what stands before each of them.

/// One script: a verb of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    Open,
    Push,
    Claim,
    Renew,
    Settle,
    Read,
    Counts,
    Tick,
    Command,
    Beat,
    Schedule,
    Ring,
}

const COMMON: &str = include_str!("lua/common.lua");
const FLOW: &str = include_str!("lua/flow.lua");

impl Script {
    pub(crate) const ALL: [Self; 12] = [
        Self::Open,
        Self::Push,
        Self::Claim,
        Self::Renew,
        Self::Settle,
        Self::Read,
        Self::Counts,
        Self::Tick,
        Self::Command,
        Self::Beat,
        Self::Schedule,
        Self::Ring,
    ];

    /// Its text for a server of this version.
    pub(crate) fn text(self, major: u32) -> String {
        let (flow, own) = match self {
            Self::Open => ("", include_str!("lua/open.lua")),
            Self::Push => (FLOW, include_str!("lua/push.lua")),
            Self::Claim => ("", include_str!("lua/claim.lua")),
            Self::Renew => ("", include_str!("lua/renew.lua")),
            Self::Settle => (FLOW, include_str!("lua/settle.lua")),
            Self::Read => ("", include_str!("lua/read.lua")),
            Self::Counts => ("", include_str!("lua/counts.lua")),
            Self::Tick => ("", include_str!("lua/tick.lua")),
            Self::Command => ("", include_str!("lua/command.lua")),
            Self::Beat => ("", include_str!("lua/beat.lua")),
            Self::Schedule => ("", include_str!("lua/schedule.lua")),
            Self::Ring => ("", include_str!("lua/ring.lua")),
        };
        let first = match (self.needs_memory(), major >= 7) {
            // What works off the queues may go over the limit of memory: it is what makes room.
            (false, true) => "#!lua flags=allow-oom\n",
            // An older server refuses every command that needs memory. It is asked before anything is changed.
            (false, false) if self.writes() => "redis.call('HSET', KEYS[1], 'asked', '1')\n",
            (false, false) | (true, _) => "",
        };
        format!("{first}{COMMON}{flow}{own}")
    }

    /// Whether it stores something new, which a full server refuses.
    fn needs_memory(self) -> bool {
        matches!(self, Self::Open | Self::Push | Self::Schedule)
    }

    fn writes(self) -> bool {
        !matches!(self, Self::Counts)
    }
}
