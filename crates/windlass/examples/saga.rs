//! A saga: steps at services that know nothing of each other, and their compensation in reverse order when one says no.
//!
//! Each booking and each cancellation is a durable step: an attempt that dies in the middle goes on where it was, forwards or
//! backwards. What a service *refuses* is the result of its step, so that later attempts go the same way; what merely *fails* is
//! an error, and is tried again.
//!
//! ```sh
//! cargo run -p windlass --example saga
//! ```

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use windlass::prelude::*;

/// The parts of a trip, in the order in which they are booked.
const PARTS: [&str; 3] = ["flight", "hotel", "car"];

/// Books everything, or nothing.
#[derive(Task, Serialize, Deserialize)]
#[task(output = Trip, retries = 5, backoff = "10ms")]
struct BookTrip {
    traveller: String,
    days: u32,
}

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
enum Trip {
    Booked(Vec<String>),
    Undone { because: String },
}

/// What a service answers to a booking.
#[derive(Debug, Serialize, Deserialize)]
enum Booking {
    Confirmed { reference: String },
    Refused { reason: String },
}

async fn book_trip(task: BookTrip, cx: Cx<Services>) -> Result<Trip, TaskError> {
    let mut confirmed = Vec::new();
    for part in PARTS {
        // The key of the call is the same in every attempt: a service that knows it books once, whatever dies in between.
        let key = format!("{}/{part}", cx.id());
        match cx.step(&format!("book {part}"), || cx.state().book(part, &task, &key)).await? {
            Booking::Confirmed { reference } => confirmed.push((part, reference)),
            Booking::Refused { reason } => {
                for (part, reference) in confirmed.into_iter().rev() {
                    cx.step(&format!("cancel {part}"), || cx.state().cancel(part, &reference)).await?;
                }
                return Ok(Trip::Undone { because: format!("{part}: {reason}") });
            }
        }
    }
    Ok(Trip::Booked(confirmed.into_iter().map(|(_, reference)| reference).collect()))
}

/// Stands in for three services elsewhere. The first call to the car rental and the first cancellation of a flight fail.
#[derive(Default)]
struct Services {
    calls: Mutex<HashMap<&'static str, u32>>,
}

#[expect(clippy::unused_async, reason = "real services are waited for")]
impl Services {
    async fn book(&self, part: &'static str, task: &BookTrip, _key: &str) -> Result<Booking, TaskError> {
        if part == "car" && self.is_first("book car") {
            println!("  book car:      no answer");
            return Err(TaskError::failed("the car rental does not answer"));
        }
        if part == "car" && task.days > 7 {
            println!("  book car:      refused");
            return Ok(Booking::Refused { reason: "no car for so long".to_owned() });
        }
        println!("  {:<15}{}", format!("book {part}:"), task.traveller);
        Ok(Booking::Confirmed { reference: format!("{part}-{}", task.traveller) })
    }

    async fn cancel(&self, part: &'static str, reference: &str) -> Result<(), TaskError> {
        if part == "flight" && self.is_first("cancel flight") {
            println!("  cancel flight: no answer");
            return Err(TaskError::failed("the airline does not answer"));
        }
        println!("  {:<15}{reference}", format!("cancel {part}:"));
        Ok(())
    }

    fn is_first(&self, call: &'static str) -> bool {
        let mut calls = self.calls.lock().expect("nobody panics with it");
        let count = calls.entry(call).or_default();
        *count += 1;
        *count == 1
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (limit, store) = (Duration::from_secs(10), windlass::connect("memory:").await?);
    let state = async || Ok::<_, std::convert::Infallible>(Services::default());
    let registry = App::new("trips").state(state).task(book_trip).build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(store.clone(), registry, Settings::new(NodeId::known("worker-1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let client = Client::new(store);

    for (traveller, days) in [("Ada", 3), ("Grace", 30)] {
        println!("{traveller}, {days} days");
        let trip = client.enqueue(BookTrip { traveller: traveller.to_owned(), days }).await?;
        let ended = trip.ended(limit).await?;
        println!("{:?}, at attempt {}", trip.output(limit).await?, ended.attempt);
    }

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
