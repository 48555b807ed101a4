//! What an application consists of: its tasks with their handlers, its schedules, its middleware and its state.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::batch::{Batch, Room};
use crate::call::{Call, Cx};
use crate::error::{BoxError, TaskError};
use crate::limit::{DECLARED_MAX, Limit, Rule, SetBy, Subject};
use crate::middleware::Middleware;
use crate::retry::Outcome;
use crate::schedule::{Schedule, When};
use crate::task::{Definition, Task};
use crate::{Args, Envelope, Feed, InvalidArgs, Json, TaskName, Timestamp};

/// An application, built up and then handed to the command line or to a worker.
///
/// ```
/// # extern crate windlass_core as windlass;
/// use serde::{Deserialize, Serialize};
/// use windlass_core::{App, Task, TaskError, call::Cx};
///
/// /// Adds two numbers.
/// #[derive(Task, Serialize, Deserialize)]
/// #[task(output = i64)]
/// struct Add { a: i64, b: i64 }
///
/// async fn add(task: Add, _cx: Cx) -> Result<i64, TaskError> {
///     Ok(task.a + task.b)
/// }
///
/// let app = App::new("calculator").task(add);
/// assert_eq!(app.definitions().next().unwrap().name.as_str(), "add");
/// ```
pub struct App<S = ()> {
    name: String,
    state: BoxFuture<'static, Result<S, BoxError>>,
    tasks: Vec<Declared<S>>,
    fallback: Option<Declared<S>>,
    schedules: Vec<Result<Schedule, String>>,
    limits: Vec<Result<Limit, String>>,
    middleware: Vec<Arc<dyn Middleware>>,
}

/// A task with its handler, before the state exists.
struct Declared<S> {
    definition: &'static Definition,
    check: CheckArgs,
    takes: Takes,
    bind: Bind<S>,
}

/// How many tasks one call of a handler takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Takes {
    One,
    Several(Batch),
}

/// Whether arguments are those of a task: what a producer asks that knows the task by name only.
pub type CheckArgs = fn(&Args) -> Result<(), InvalidArgs>;

/// Joins a handler with the state, once that exists.
type Bind<S> = Box<dyn FnOnce(&Arc<S>, &Arc<Room>) -> Run + Send>;
pub(crate) type Run = Box<dyn Fn(Arc<Call>, &Arc<Registry>) -> BoxFuture<'static, Outcome> + Send + Sync>;

impl<S> Declared<S> {
    /// What is wrong with the registration of this task alone.
    fn mistakes(&self) -> Vec<String> {
        match self.takes {
            Takes::One => Vec::new(),
            Takes::Several(size) => size.mistakes(self.definition),
        }
    }

    /// The limits that are written at the task.
    fn limits(&self) -> Vec<Result<Limit, String>> {
        let (name, options) = (&self.definition.name, &self.definition.options);
        [(Subject::Task(name.clone()), &options.limit), (Subject::KeysOfTask(name.clone()), &options.key_limit)]
            .into_iter()
            .filter(|(_, rule)| !rule.is_empty())
            .map(|(subject, rule)| declared(subject, rule))
            .collect()
    }
}

/// A limit as an application declares it.
fn declared(subject: Subject, rule: &Rule) -> Result<Limit, String> {
    let limit = Limit { subject, rule: Rule { set_by: SetBy::Application, ..rule.clone() } };
    limit.check().map_err(|error| error.to_string())?;
    Ok(limit)
}

impl App<()> {
    /// An application without state.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: std::future::ready(Ok(())).boxed(),
            tasks: Vec::new(),
            fallback: None,
            schedules: Vec::new(),
            limits: Vec::new(),
            middleware: Vec::new(),
        }
    }

    /// Sets the state that every handler gets, when it is there already: in tests, or in a service that has opened its
    /// connections itself. Comes before the tasks.
    ///
    /// ```
    /// # extern crate windlass_core as windlass;
    /// # use serde::{Deserialize, Serialize};
    /// # use windlass_core::{App, Cx, Task, TaskError};
    /// # #[derive(Task, Serialize, Deserialize)] #[task(output = String)] struct Greet { name: String }
    /// async fn greet(task: Greet, cx: Cx<&'static str>) -> Result<String, TaskError> {
    ///     Ok(format!("{}, {}!", cx.state(), task.name))
    /// }
    /// let app = App::new("greeter").with_state("Good morning").task(greet);
    /// ```
    pub fn with_state<S: Send + Sync + 'static>(self, state: S) -> App<S> {
        self.state(async move || Ok::<S, BoxError>(state))
    }

    /// Sets what makes the state that every handler gets: connections, clients, settings. It runs when a worker starts,
    /// never for a producer. Comes before the tasks.
    pub fn state<S, F, Fut, E>(self, make: F) -> App<S>
    where
        S: Send + Sync + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<S, E>> + Send,
        E: Into<BoxError>,
    {
        let is_first = self.tasks.is_empty() && self.fallback.is_none();
        assert!(is_first, "`App::state` comes before the tasks that use it");
        let state = async move { make().await.map_err(Into::into) }.boxed();
        let Self { name, schedules, limits, middleware, .. } = self;
        App { name, state, tasks: Vec::new(), fallback: None, schedules, limits, middleware }
    }
}

impl<S: Send + Sync + 'static> App<S> {
    /// Registers the handler of a task.
    #[must_use]
    pub fn task<T, F, Fut>(self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, Cx<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T::Output, TaskError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.handle(move |task: T, cx| {
            let handler = Arc::clone(&handler);
            // The handler is called inside of the future, so that a panic before its first await is caught as well.
            async move { outcome_of(handler(task, cx).await) }.boxed()
        })
    }

    /// Registers a handler that blocks or computes: it runs on a thread of its own kind, so that it holds up nobody else.
    ///
    /// At its hard limit the attempt is over, but its thread runs on until the handler returns: watch [`Call::stop_reason`]
    /// in loops. A worker with a guard ends its process then.
    #[must_use]
    pub fn blocking_task<T, F>(self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, Cx<S>) -> Result<T::Output, TaskError> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.handle(move |task: T, cx| {
            let handler = Arc::clone(&handler);
            let on_thread = cx.takes_thread();
            async move {
                let running = tokio::task::spawn_blocking(move || {
                    let result = handler(task, cx);
                    // A panic drops it as well.
                    drop(on_thread);
                    result
                });
                match running.await {
                    Ok(result) => outcome_of(result),
                    Err(error) if error.is_panic() => Outcome::Panicked(panic_text(&*error.into_panic())),
                    Err(_) => Outcome::Released,
                }
            }
            .boxed()
        })
    }

    /// Registers what runs every task that has no handler of its own, whatever its name and its arguments: to hand it on, say,
    /// to somebody who has one. It finds the task in [`Call::envelope`]; its options are those of `definition`. Without a
    /// fallback such tasks are parked until a node declares their name.
    #[must_use]
    pub fn fallback<O, F, Fut>(mut self, definition: &'static Definition, handler: F) -> Self
    where
        O: serde::Serialize,
        F: Fn(Cx<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, TaskError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let bind: Bind<S> = Box::new(move |state, _room| {
            let state = Arc::clone(state);
            Box::new(move |call, _registry| {
                let (handler, cx) = (Arc::clone(&handler), Cx::new(call, Arc::clone(&state)));
                async move { outcome_of(handler(cx).await) }.boxed()
            })
        });
        self.fallback = Some(Declared { definition, check: |_| Ok(()), takes: Takes::One, bind });
        self
    }

    /// Registers what runs one task on its own.
    fn handle<T, R>(self, run: R) -> Self
    where
        T: Task,
        R: Fn(T, Cx<S>) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    {
        self.declare(Takes::One, move |state, _room| {
            let state = Arc::clone(state);
            move |task, call| run(task, Cx::new(call, Arc::clone(&state)))
        })
    }

    /// Registers what makes, once the state exists, what runs a task whose arguments are decoded.
    pub(crate) fn declare<T, R>(
        mut self,
        takes: Takes,
        make: impl FnOnce(&Arc<S>, &Arc<Room>) -> R + Send + 'static,
    ) -> Self
    where
        T: Task,
        R: Fn(T, Arc<Call>) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    {
        let definition = T::definition();
        let bind: Bind<S> = Box::new(move |state, room| {
            let run = make(state, room);
            Box::new(move |call, _registry| match decode::<T>(definition, &call) {
                Ok(task) => run(task, call),
                Err(outcome) => std::future::ready(outcome).boxed(),
            })
        });
        self.tasks.push(Declared { definition, check: check_args::<T>, takes, bind });
        self
    }

    /// Adds middleware around what is inside of it: the first one added is the outermost.
    #[must_use]
    pub fn middleware(mut self, middleware: impl Middleware + 'static) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// Declares a schedule. Changing it here changes it in the store when a node starts; removing it here leaves it there,
    /// until `schedule remove`.
    #[must_use]
    pub fn schedule<T: Task>(mut self, id: &str, when: impl Into<When>, task: T) -> Self {
        let schedule = Envelope::of(&task, Timestamp::MIN)
            .map_err(|error| error.to_string())
            .and_then(|template| when.into().schedule(id, template).map_err(|error| error.to_string()));
        self.schedules.push(schedule.map_err(|error| format!("schedule `{id}`: {error}")));
        self
    }

    /// Declares a limit, as in `limit("queue:mail", rule)`; those of tasks can be written at the task: `#[task(rate = "100/m")]`.
    ///
    /// When a node starts, the store's rule becomes this one, and the rules that earlier versions of the application have
    /// declared and this one does not are forgotten. What an operator has set stays. At most [`DECLARED_MAX`], those of
    /// the tasks included.
    ///
    /// ```
    /// # extern crate windlass_core as windlass;
    /// use windlass_core::{App, Rate, Rule};
    /// const MAIL: Rate = Rate::known("100/m burst 10");
    ///
    /// let app = App::new("shop")
    ///     .limit("queue:mail", Rule { rate: Some(MAIL), ..Rule::default() })
    ///     .limit("keys-of-queue:reports", Rule { concurrency: Some(2), ..Rule::default() });
    /// ```
    #[must_use]
    pub fn limit<T>(mut self, subject: T, rule: Rule) -> Self
    where
        T: TryInto<Subject, Error: fmt::Display>,
    {
        let limit = subject.try_into().map_err(|error| error.to_string()).and_then(|subject| declared(subject, &rule));
        self.limits.push(limit.map_err(|error| format!("limit: {error}")));
        self
    }

    /// The name of the application.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every task, in the order of registration.
    pub fn definitions(&self) -> impl Iterator<Item = &'static Definition> {
        self.tasks.iter().map(|task| task.definition)
    }

    /// The same with the check of arguments, which decodes them as a worker would and runs nothing.
    pub fn checks(&self) -> impl Iterator<Item = (&'static Definition, CheckArgs)> {
        self.tasks.iter().map(|task| (task.definition, task.check))
    }

    /// Makes the state and binds the handlers to it.
    ///
    /// # Errors
    /// [`BuildError`] when the state cannot be made, and with every mistake in the registrations at once.
    pub async fn build(self) -> Result<Registry, BuildError> {
        let mut mistakes: Vec<String> = self.tasks.iter().flat_map(Declared::mistakes).collect();
        let mut schedules: Vec<Schedule> = Vec::new();
        for schedule in self.schedules {
            match schedule {
                Ok(schedule) if schedules.iter().any(|other| other.id == schedule.id) => {
                    mistakes.push(format!("schedule `{}` is declared twice", schedule.id));
                }
                Ok(schedule) => schedules.push(schedule),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let mut limits: Vec<Limit> = Vec::new();
        for limit in self.limits.into_iter().chain(self.tasks.iter().flat_map(Declared::limits)) {
            match limit {
                Ok(limit) if limits.iter().any(|other| other.subject == limit.subject) => {
                    mistakes.push(format!("the limit of `{}` is declared twice", limit.subject));
                }
                Ok(limit) => limits.push(limit),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if limits.len() > DECLARED_MAX {
            mistakes
                .push(format!("{} limits are declared, an application declares at most {DECLARED_MAX}", limits.len()));
        }
        let names: Vec<&TaskName> = self.tasks.iter().map(|task| &task.definition.name).collect();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                mistakes.push(format!("task `{name}` is registered twice"));
            }
        }
        if !mistakes.is_empty() {
            return Err(BuildError::Mistakes(mistakes));
        }
        let state = Arc::new(self.state.await.map_err(BuildError::State)?);
        let room = Arc::new(Room::new());
        let bound = |Declared { definition, takes, bind, .. }| Entry { definition, takes, run: bind(&state, &room) };
        let entries = self.tasks.into_iter().map(|task| (task.definition.name.clone(), bound(task))).collect();
        let fallback = self.fallback.map(bound);
        Ok(Registry { name: self.name, entries, fallback, schedules, limits, middleware: self.middleware.into(), room })
    }
}

impl<S> fmt::Debug for App<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "App({}, {} tasks)", self.name, self.tasks.len())
    }
}

/// Why an application cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What `App::state` was given failed.
    #[error("the application's state cannot be made: {0}")]
    State(#[source] BoxError),
    /// The registrations contradict each other.
    #[error("the application is declared wrongly: {}", .0.join("; "))]
    Mistakes(Vec<String>),
}

/// Every task of an application with its handler, bound to its state.
pub struct Registry {
    name: String,
    entries: BTreeMap<TaskName, Entry>,
    fallback: Option<Entry>,
    schedules: Vec<Schedule>,
    limits: Vec<Limit>,
    middleware: Arc<[Arc<dyn Middleware>]>,
    room: Arc<Room>,
}

impl Registry {
    /// The name of the application.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What runs tasks of this name.
    pub fn entry(&self, name: &TaskName) -> Option<&Entry> {
        self.entries.get(name).or(self.fallback.as_ref())
    }

    /// This application as a node knows it that runs its tasks by the handlers of another one: what it declares, and what the
    /// other one does.
    #[must_use]
    pub fn run_by(self, other: Self) -> Self {
        Self { name: self.name, schedules: self.schedules, limits: self.limits, ..other }
    }

    /// Whether every task has a handler here.
    pub fn runs_any(&self) -> bool {
        self.fallback.is_some()
    }

    /// Adds a task, unless the application has one of its name.
    pub(crate) fn add(&mut self, definition: &'static Definition, run: Run) {
        let name = definition.name.clone();
        self.entries.entry(name).or_insert(Entry { definition, takes: Takes::One, run });
    }

    /// The names of all tasks that have handlers of their own, sorted.
    pub fn names(&self) -> Vec<TaskName> {
        self.entries.keys().cloned().collect()
    }

    /// The declared schedules.
    pub fn schedules(&self) -> &[Schedule] {
        &self.schedules
    }

    /// The declared limits, those of the tasks included.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// The middleware, outermost first.
    pub fn middleware(&self) -> &Arc<[Arc<dyn Middleware>]> {
        &self.middleware
    }

    /// The batches that this many slots cannot fill, each with the tasks that it could take.
    pub(crate) fn larger_batches(&self, slots: usize) -> impl Iterator<Item = (&TaskName, usize)> {
        self.entries.iter().filter_map(move |(name, entry)| match entry.takes {
            Takes::Several(size) if size.tasks() > slots => Some((name, size.tasks())),
            Takes::Several(_) | Takes::One => None,
        })
    }

    /// Where batches hear how much room the worker has.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("name", &self.name).field("tasks", &self.names()).finish_non_exhaustive()
    }
}

/// A task with its handler.
pub struct Entry {
    definition: &'static Definition,
    takes: Takes,
    run: Run,
}

impl Entry {
    /// What is known of the task.
    pub fn definition(&self) -> &'static Definition {
        self.definition
    }

    /// Decodes the arguments and runs the handler.
    pub(crate) fn run(&self, call: Arc<Call>, registry: &Arc<Registry>) -> BoxFuture<'static, Outcome> {
        (self.run)(call, registry)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({})", self.definition.name)
    }
}

fn check_args<T: Task>(args: &Args) -> Result<(), InvalidArgs> {
    args.decode::<T>(T::definition().fields.named(), &Feed::Nothing, None).map(drop)
}

pub(crate) fn decode<T: Task>(definition: &Definition, call: &Call) -> Result<T, Outcome> {
    let envelope = &call.envelope;
    envelope
        .args
        .decode(definition.fields.named(), &envelope.feed, envelope.input.as_ref())
        .map_err(|error| Outcome::Malformed(error.to_string()))
}

/// What a handler's result means.
pub(crate) fn outcome_of<O: serde::Serialize>(result: Result<O, TaskError>) -> Outcome {
    match result {
        Ok(output) => match Json::of(&output) {
            Ok(json) => Outcome::Done(json),
            Err(error) => Outcome::Error(TaskError::fatal(format_args!("the result cannot be stored: {error}"))),
        },
        Err(error) => Outcome::Error(error),
    }
}

/// The text of a panic.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "the panic carried no text".to_owned()
    }
}
