//! Redis as a transport of foreign messages: lists, streams and channels that other programs write and read.
//!
//! What is in a message is nobody's business here: bytes in, bytes out. A bridge puts a codec beside it.
//!
//! | | takes from | until it is accepted, a message is | a process that dies |
//! |---|---|---|---|
//! | [`Lists`] | the right end of lists, in an order that the caller gives | in a holding hash of this session | has its holding recovered by the others |
//! | [`Stream`] | streams, as a consumer of a group | pending in the group | has its entries claimed by the others |
//!
//! Both answer a token for each message that stays the same when the message is recovered: whoever has adopted it already
//! knows it again. [`Line`] carries any other command, and [`Channels`] hears what is published.
//!
//! Who waits is woken by the server's own notice that a key has changed (`CLIENT TRACKING`, Redis 6), so that any number of
//! lists costs one connection and no polling, and nothing is popped that a crash could lose. A server without it is asked
//! ten times a second.
//!
//! The keys of a bridge may be in any slot: a cluster is not supported, as the clients on the other side of it do not
//! support one either.

mod channels;
mod line;
mod lists;
mod stream;
mod wake;

pub use channels::{Channels, Heard};
pub use line::{Command, Line, Reply};
pub use lists::{Lists, SILENT_AFTER, Taken};
pub use stream::{Entry, Stream};

/// The most bytes that one look takes, but for the last message: what is larger comes with the next look.
const LOOK_BYTES: usize = 32 * 1024 * 1024;
