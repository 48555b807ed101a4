//! What a supervisor and its children say to each other: single bytes over a pair of sockets, so that nothing is ever half
//! said. The other end of a channel closes however its process ends.

/// What a child says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// The engine's thread runs.
    Beat,
    /// It takes tasks.
    Ready,
    /// It has done so much, or uses so much memory, that another should take its place.
    Due,
    /// It takes no more tasks and ends when those that it has are settled.
    Leaving,
}

/// What a supervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Take no more tasks, and stay.
    Quiet,
    /// Finish what runs and end.
    Stop,
    /// Give back what runs and end.
    StopNow,
}

impl Word {
    const ALL: [Self; 4] = [Self::Beat, Self::Ready, Self::Due, Self::Leaving];

    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Beat => b'.',
            Self::Ready => b'r',
            Self::Due => b'd',
            Self::Leaving => b'l',
        }
    }

    pub(crate) fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|word| word.byte() == byte)
    }
}

impl Command {
    const ALL: [Self; 3] = [Self::Quiet, Self::Stop, Self::StopNow];

    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Quiet => b'q',
            Self::Stop => b's',
            Self::StopNow => b'n',
        }
    }

    pub(crate) fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood_at_the_other_end() {
        assert!(Word::ALL.into_iter().all(|word| Word::of(word.byte()) == Some(word)));
        assert!(Command::ALL.into_iter().all(|command| Command::of(command.byte()) == Some(command)));
        assert_eq!((Word::of(b'?'), Command::of(b'?')), (None, None));
    }
}
