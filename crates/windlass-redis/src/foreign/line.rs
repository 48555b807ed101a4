//! A connection for commands that other programs understand, made again when it broke. Nothing is repeated by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, PushInfo, PushKind, RedisError, Script, Value};
use tokio::sync::{Mutex, mpsc};
use windlass_core::StoreError;

use crate::link::{Link, send};
use crate::location::Location;

/// A command: its name and its arguments.
pub type Command = Vec<Vec<u8>>;

/// What a server answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Nothing is there.
    Nil,
    /// A number.
    Number(i64),
    /// A string, or a status.
    Bytes(Vec<u8>),
    /// Several.
    List(Vec<Reply>),
}

impl Reply {
    /// The bytes of a string; `None` for anything else.
    pub fn bytes(self) -> Option<Vec<u8>> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// The parts of a list; nothing for anything else.
    pub fn list(self) -> Vec<Self> {
        if let Self::List(parts) = self { parts } else { Vec::new() }
    }

    /// A number, also one that is written as text.
    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            Self::Nil | Self::List(_) => None,
        }
    }
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::Int(number) => Self::Number(number),
            Value::Boolean(yes) => Self::Number(i64::from(yes)),
            Value::BulkString(bytes) => Self::Bytes(bytes),
            Value::SimpleString(text) => Self::Bytes(text.into_bytes()),
            Value::VerbatimString { text, .. } => Self::Bytes(text.into_bytes()),
            Value::Okay => Self::Bytes(b"OK".to_vec()),
            Value::Double(number) => Self::Bytes(number.to_string().into_bytes()),
            Value::Array(parts) | Value::Set(parts) => Self::List(parts.into_iter().map(Self::from).collect()),
            Value::Map(pairs) => {
                Self::List(pairs.into_iter().flat_map(|(key, value)| [key.into(), value.into()]).collect())
            }
            _ => Self::Nil,
        }
    }
}

/// A connection to a server in which others keep their messages.
#[derive(Debug)]
pub struct Line {
    link: Link,
    slot: Mutex<Option<Live>>,
}

struct Live {
    connection: MultiplexedConnection,
    broken: Arc<AtomicBool>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Line {
    /// A line to this server; it connects when it is asked for the first time.
    pub fn to(location: Location) -> Self {
        Self { link: Link::new(location), slot: Mutex::new(None) }
    }

    /// The number of its database: channels of some programs have it in their name.
    pub fn database(&self) -> i64 {
        self.link.location().db
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// [`StoreError`]; after a transient one it may or may not have happened.
    pub async fn ask(&self, command: &[Vec<u8>]) -> Result<Reply, StoreError> {
        let cmd = to_cmd(command);
        let (mut connection, broken) = self.live().await?;
        let answer = send(&mut connection, &cmd).await;
        self.answer(answer, &broken).map(Reply::from)
    }

    /// Asks for several things in one trip, in their order; each by itself, whatever becomes of the others.
    ///
    /// # Errors
    /// [`StoreError`]; those before and after the one that failed have happened.
    pub async fn ask_all(&self, commands: &[Command]) -> Result<Vec<Reply>, StoreError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(to_cmd(command));
        }
        let (mut connection, broken) = self.live().await?;
        let answer = connection.req_packed_commands(&pipeline, 0, pipeline.len()).await;
        let values = self.answer(answer, &broken)?;
        values
            .into_iter()
            .map(|value| value.extract_error().map(Reply::from).map_err(|error| self.link.fault(&error)))
            .collect()
    }

    /// Runs a script; the server is told its text when it does not know it.
    ///
    /// # Errors
    /// [`StoreError`]; after a transient one it may or may not have happened.
    pub async fn run(&self, script: &str, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Result<Reply, StoreError> {
        let script = Script::new(script);
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        for arg in args {
            invocation.arg(arg);
        }
        let (mut connection, broken) = self.live().await?;
        let answer: Result<Value, RedisError> = invocation.invoke_async(&mut connection).await;
        self.answer(answer.and_then(Value::extract_error), &broken).map(Reply::from)
    }

    /// A connection of its own, for whoever listens.
    pub(super) async fn listen(
        &self,
        heard: mpsc::UnboundedSender<PushInfo>,
    ) -> Result<MultiplexedConnection, StoreError> {
        self.link.listen(heard).await
    }

    pub(super) fn fault(&self, error: &RedisError) -> StoreError {
        self.link.fault(error)
    }

    async fn live(&self) -> Result<(MultiplexedConnection, Arc<AtomicBool>), StoreError> {
        let mut slot = self.slot.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| !live.broken.load(Ordering::Acquire)) {
            return Ok((live.connection.clone(), Arc::clone(&live.broken)));
        }
        *slot = None;
        let broken = Arc::new(AtomicBool::new(false));
        // tidy: allow(unbounded): the client library hands messages over without waiting; here only the last one comes
        let (sender, mut heard) = mpsc::unbounded_channel::<PushInfo>();
        let connection = self.link.listen(sender).await?;
        let notice = Arc::clone(&broken);
        tokio::spawn(async move {
            while let Some(push) = heard.recv().await {
                if push.kind == PushKind::Disconnection {
                    notice.store(true, Ordering::Release);
                }
            }
        });
        let live = slot.insert(Live { connection, broken });
        Ok((live.connection.clone(), Arc::clone(&live.broken)))
    }

    fn answer<T>(&self, answer: Result<T, RedisError>, broken: &AtomicBool) -> Result<T, StoreError> {
        answer.map_err(|error| {
            if error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() {
                broken.store(true, Ordering::Release);
            }
            self.link.fault(&error)
        })
    }
}

fn to_cmd(command: &[Vec<u8>]) -> Cmd {
    let mut cmd = Cmd::new();
    for part in command {
        cmd.arg(part);
    }
    cmd
}
