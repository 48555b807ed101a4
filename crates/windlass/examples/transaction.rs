//! Orders and tasks in one PostgreSQL database: what is ordered is fulfilled, once.
//!
//! An HTTP handler (axum, sqlx) writes an order and enqueues its task in one transaction: both are there, or neither. The task
//! writes its effects and completes itself in one transaction: both have happened, or neither, so a second attempt does not ship
//! twice.
//!
//! ```sh
//! DATABASE_URL=postgres://localhost/test cargo run -p windlass --features postgres --example transaction
//! ```
//!
//! It makes the schemas `windlass_example_shop` and `windlass_example_tasks`, and drops them first.

use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use sqlx_core::query::query;
use sqlx_core::query_scalar::query_scalar;
use sqlx_core::raw_sql::raw_sql;
use sqlx_postgres::{PgPool, Postgres};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use windlass::prelude::*;

const TASKS: &str = "windlass_example_tasks";

/// Takes an order out of the stock.
#[derive(Task, Serialize, Deserialize)]
#[task(output = i64, retries = 3, backoff = "10ms")]
struct Fulfil {
    order: i64,
}

/// What the handlers of the service and of the tasks share.
#[derive(Clone)]
struct Shop {
    database: PgPool,
    tasks: Client,
}

#[derive(Deserialize)]
struct NewOrder {
    item: String,
    quantity: i64,
}

async fn place_order(shop: Shared<Shop>, Json(new): Json<NewOrder>) -> Result<(StatusCode, String), StatusCode> {
    let failed = |_| StatusCode::SERVICE_UNAVAILABLE;
    let mut transaction = shop.database.begin().await.map_err(failed)?;
    let order: i64 = query_scalar("SELECT nextval('windlass_example_shop.order_id')")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let task = shop.tasks.enqueue(Fulfil { order }).prepare().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    windlass_sqlx::push_in(&mut transaction, TASKS, &task).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    // Refused by the table when the quantity makes no sense: then the transaction is rolled back, and the task never was.
    query::<Postgres>("INSERT INTO windlass_example_shop.orders (id, item, quantity) VALUES ($1, $2, $3)")
        .bind(order)
        .bind(new.item)
        .bind(new.quantity)
        .execute(&mut *transaction)
        .await
        .map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    transaction.commit().await.map_err(failed)?;
    Ok((StatusCode::CREATED, format!("order {order}")))
}

async fn fulfil(task: Fulfil, cx: Cx<Shop>) -> Result<i64, TaskError> {
    let mut transaction = cx.state().database.begin().await?;
    let left: i64 = query_scalar(
        "UPDATE windlass_example_shop.stock s SET pieces = pieces - o.quantity FROM windlass_example_shop.orders o \
         WHERE o.id = $1 AND s.item = o.item RETURNING pieces",
    )
    .bind(task.order)
    .fetch_one(&mut *transaction)
    .await?;
    windlass_sqlx::complete_in(&mut transaction, TASKS, &cx, &left).await?;
    if cx.attempt == 1 {
        // As if the process died here: what was taken out of the stock is rolled back with the completion.
        println!("worker: attempt 1 dies before its commit");
        return Err(TaskError::failed("died"));
    }
    transaction.commit().await?;
    Ok(left)
}

async fn tables(database: &PgPool) -> Result<(), sqlx_core::Error> {
    let tables = "DROP SCHEMA IF EXISTS windlass_example_shop CASCADE; DROP SCHEMA IF EXISTS windlass_example_tasks CASCADE; \
         CREATE SCHEMA windlass_example_shop; CREATE SEQUENCE windlass_example_shop.order_id; \
         CREATE TABLE windlass_example_shop.stock (item text PRIMARY KEY, pieces bigint NOT NULL); \
         CREATE TABLE windlass_example_shop.orders (id bigint PRIMARY KEY, item text NOT NULL, quantity bigint CHECK (quantity > 0)); \
         INSERT INTO windlass_example_shop.stock VALUES ('book', 10)";
    raw_sql(tables).execute(database).await.map(drop)
}

/// The body of an answer, after its status.
async fn ask(server: std::net::SocketAddr, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    let length = body.len();
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned();
    Ok(format!("{status} {}", answer.split("\r\n\r\n").nth(1).unwrap_or_default()).trim_end().to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL names a PostgreSQL database")?;
    let database = PgPool::connect(&url).await?;
    tables(&database).await?;
    let joint = if url.contains('?') { '&' } else { '?' };
    let store = windlass::connect(&format!("{url}{joint}schema={TASKS}")).await?;
    let shop = Shop { database: database.clone(), tasks: Client::new(store.clone()) };

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = listener.local_addr()?;
    let service = Router::new().route("/orders", post(place_order)).with_state(shop.clone());
    tokio::spawn(async move { axum::serve(listener, service).await });

    println!("shop:   {}", ask(server, r#"{"item":"book","quantity":3}"#).await?);
    println!("shop:   {}", ask(server, r#"{"item":"book","quantity":0}"#).await?);
    println!("store:  {} task", store.counts().await?.total().live());

    let state = {
        let shop = shop.clone();
        async move || Ok::<_, std::convert::Infallible>(shop)
    };
    let registry = App::new("shop").state(state).task(fulfil).build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(store.clone(), registry, Settings::new(NodeId::known("worker-1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let tasks = store.list(&windlass::view::Filter::all(), &windlass::view::Page::first(1)).await?;
    let handle = shop.tasks.handle::<Fulfil>(tasks.tasks[0].envelope.id.clone());
    println!("worker: {} books left, says the task", handle.output(Duration::from_secs(10)).await?);
    let left: i64 = query_scalar("SELECT pieces FROM windlass_example_shop.stock").fetch_one(&database).await?;
    println!("shop:   {left} books left, says the table");

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
