//! What goes wrong when a store is opened or used, and what is said about it: one line with the next step, without secrets.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;

use common::{Schema, client, demand, push, server, store, task};
use tokio_postgres::Config;
use windlass_core::StoreError;
use windlass_core::backend::Backend;
use windlass_core::view::Health;
use windlass_postgres::{Migrations, Options, PostgresStore, SCHEMA_VERSION};

async fn refused(url: &str) -> StoreError {
    let error = PostgresStore::connect(url, Options::default()).await.expect_err("it cannot be opened");
    let said = error.to_string();
    assert!(!said.contains("s3cret") && !said.contains('\n'), "{said}");
    error
}

/// A URL for this user on the server of the tests.
fn url_as(user: &str, schema: &str) -> String {
    let config: Config = server().parse().expect("a URL");
    let host = match &config.get_hosts()[0] {
        tokio_postgres::config::Host::Tcp(host) => host.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!(
        "postgres://{user}:s3cret@{host}:{port}/{}?schema={schema}&connections=1",
        config.get_dbname().expect("a database")
    )
}

/// A role of the test's own.
struct Role(String);

impl Role {
    async fn new(what: &str) -> Self {
        let name = format!("r_{}", uuid::Uuid::now_v7().simple());
        client().await.batch_execute(&format!("CREATE ROLE {name} {what}")).await.expect("a role");
        Self(name)
    }

    async fn forget(self) {
        let sql = format!("DROP OWNED BY {0}; DROP ROLE {0}", self.0);
        client().await.batch_execute(&sql).await.expect("the role is dropped");
    }
}

/// A server that answers the first message of every connection with an error.
fn server_that_says(code: &'static str, message: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let mut length = [0; 4];
            if connection.read_exact(&mut length).is_err() {
                continue;
            }
            let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
            if connection.read_exact(&mut rest).is_err() {
                continue;
            }
            let body = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
            let mut answer = vec![b'E'];
            answer.extend((body.len() as u32 + 4).to_be_bytes());
            answer.extend(body.as_bytes());
            // The client may have gone.
            drop(connection.write_all(&answer));
        }
    });
    format!("postgres://me:s3cret@{address}/app?sslmode=disable")
}

#[tokio::test]
async fn a_wrong_password_is_said_as_such() {
    let url = server_that_says("28P01", "password authentication failed for user \"me\"");
    let error = refused(&url).await;
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    assert!(error.to_string().contains("refused the user or the password"), "{error}");
}

#[tokio::test]
async fn a_missing_database_is_said_as_such() {
    let url = server();
    let at = url.rfind('/').expect("a database");
    let error = refused(&format!("{}/no_such_database", &url[..at])).await;
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    assert!(error.to_string().contains("no such database") && error.to_string().contains("createdb"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_when_tls_is_asked_for() {
    let error = refused(&Schema::new().url_with("sslmode=verify-full")).await;
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    assert!(error.to_string().contains("sslrootcert") && error.to_string().contains("sslmode=disable"), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_unreachable() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    for url in [
        format!("postgres://me:s3cret@127.0.0.1:{port}/app"),
        "postgres://me:s3cret@no-such-host.invalid/app".to_owned(),
    ] {
        let error = refused(&url).await;
        assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains("check host and port"), "{error}");
    }
}

#[tokio::test]
async fn a_user_without_rights_hears_who_must_act() {
    let role = Role::new("LOGIN").await;
    let schema = Schema::new();
    let error = refused(&url_as(&role.0, schema.name())).await;
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    assert!(error.to_string().contains("windlass migrate up"), "may not make a schema: {error}");
    let _store = store(&schema).await;
    let error = refused(&url_as(&role.0, schema.name())).await;
    assert!(error.to_string().contains("grant USAGE"), "may not use the schema: {error}");
    role.forget().await;
}

#[tokio::test]
async fn a_user_with_rights_on_the_tables_needs_no_more() {
    let role = Role::new("LOGIN").await;
    let schema = Schema::new();
    let _owner = store(&schema).await;
    let name = schema.name();
    client()
        .await
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA {name} TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA {name} TO {0}; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA {name} TO {0}; GRANT ALL ON ALL FUNCTIONS IN SCHEMA {name} TO {0}",
            role.0
        ))
        .await
        .expect("granted");
    let store = PostgresStore::connect(&url_as(&role.0, name), Options::default()).await.expect("a store");
    store.push(&push(vec![task()])).await.expect("pushed");
    assert_eq!(store.claim(&demand(1)).await.expect("claimed").len(), 1);
    drop(store);
    role.forget().await;
}

#[tokio::test]
async fn a_read_only_server_is_said_as_such() {
    let role = Role::new("LOGIN SUPERUSER").await;
    let sql = format!("ALTER ROLE {} SET default_transaction_read_only = on", role.0);
    client().await.batch_execute(&sql).await.expect("set");
    let error = refused(&url_as(&role.0, Schema::new().name())).await;
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("read-only") && error.to_string().contains("primary"), "{error}");
    role.forget().await;
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_said_as_such() {
    let role = Role::new("LOGIN CONNECTION LIMIT 0").await;
    let limited = refused(&url_as(&role.0, Schema::new().name())).await;
    role.forget().await;
    let full = refused(&server_that_says("53300", "sorry, too many clients already")).await;
    for error in [limited, full] {
        assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains("no free connection"), "{error}");
        assert!(error.to_string().contains("max_connections"), "{error}");
    }
}

#[tokio::test]
async fn a_store_whose_other_lanes_find_no_connection_works_with_the_one_that_it_has() {
    let role = Role::new("LOGIN CONNECTION LIMIT 1").await;
    let schema = Schema::new();
    let name = schema.name();
    drop(store(&schema).await);
    client()
        .await
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA {name} TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA {name} TO {0}; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA {name} TO {0}; GRANT ALL ON ALL FUNCTIONS IN SCHEMA {name} TO {0}",
            role.0
        ))
        .await
        .expect("granted");
    let url = url_as(&role.0, name).replace("connections=1", "connections=4");
    let store =
        std::sync::Arc::new(PostgresStore::connect(&url, Options::default()).await.expect("one connection is enough"));
    let pushes: Vec<_> = (0..20)
        .map(|_| {
            let store = std::sync::Arc::clone(&store);
            tokio::spawn(async move { store.push(&push(vec![task()])).await })
        })
        .collect();
    for push in pushes {
        push.await.expect("it does not panic").expect("pushed");
    }
    assert_eq!(store.claim(&demand(20)).await.expect("claimed").len(), 20);
    drop(store);
    common::until("its connection ends", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
        client().await.query_one(sql, &[&role.0]).await.is_ok_and(|row| row.get::<_, i64>(0) == 0)
    })
    .await;
    role.forget().await;
}

#[tokio::test]
async fn a_newer_schema_names_both_versions_and_says_to_upgrade() {
    let schema = Schema::new();
    drop(store(&schema).await);
    let sql = format!("UPDATE {}.meta SET value = 999 WHERE key = 'version'", schema.name());
    client().await.batch_execute(&sql).await.expect("updated");
    let error = refused(&schema.url()).await;
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    let said = error.to_string();
    assert!(said.contains("999") && said.contains(&SCHEMA_VERSION.to_string()) && said.contains("upgrade"), "{said}");
}

#[tokio::test]
async fn a_schema_is_looked_at_made_and_up_to_date() {
    let schema = Schema::new();
    let pending = PostgresStore::pending(&schema.url()).await.expect("looked at");
    assert_eq!((pending.version, pending.steps.len()), (0, SCHEMA_VERSION as usize));
    let options = Options { migrations: Migrations::Refuse, ..Options::default() };
    // What it would do can be applied by hand.
    for sql in &pending.sql {
        client().await.batch_execute(sql).await.expect("applied");
    }
    let pending = PostgresStore::pending(&schema.url()).await.expect("looked at");
    assert_eq!((pending.version, pending.steps.len(), pending.sql.len()), (SCHEMA_VERSION, 0, 0));
    assert_eq!(PostgresStore::migrate(&schema.url()).await.expect("migrated"), 0);
    PostgresStore::connect(&schema.url(), options).await.expect("nothing is left to do");
}

#[tokio::test]
async fn many_processes_migrate_at_once_and_one_does_it() {
    let schema = Schema::new();
    let url = schema.url();
    let steps = futures_util::future::join_all((0..4).map(|_| PostgresStore::migrate(&url))).await;
    let steps: usize = steps.into_iter().map(|steps| steps.expect("migrated")).sum();
    assert_eq!(steps, SCHEMA_VERSION as usize);
}

#[tokio::test]
async fn a_dropped_schema_is_said_as_such() {
    let schema = Schema::new();
    let store = store(&schema).await;
    client().await.batch_execute(&format!("DROP SCHEMA {} CASCADE", schema.name())).await.expect("dropped");
    let error = store.push(&push(vec![task()])).await.expect_err("there is no table");
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    assert!(error.to_string().contains("windlass migrate up"), "{error}");
}

#[tokio::test]
async fn a_store_says_what_its_server_promises() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let info = store.info().await.expect("info");
    assert_eq!(info.kind, "postgres");
    assert!(info.location.contains(schema.name()) && !info.location.contains("postgres@"), "{}", info.location);
    assert!(
        info.durability.contains("synchronous_commit=on") && info.durability.contains("fsync="),
        "{}",
        info.durability
    );
    assert!(info.size_bytes.is_some_and(|size| size > 0));
    let fsync = info.checks.iter().find(|check| check.name == "fsync").expect("a check");
    let says_on = info.durability.contains("fsync=on");
    assert_eq!(fsync.health == Health::Bad, !says_on, "{}", fsync.detail);
    assert!(info.checks.iter().filter(|check| check.name != "fsync").all(|check| check.health != Health::Bad));
}

#[tokio::test]
async fn what_the_server_cannot_store_is_said_as_such_and_stored_later() {
    for (code, is_expected) in [
        ("53100", (|error| matches!(error, StoreError::NoSpace(_))) as fn(&StoreError) -> bool),
        ("55P03", |error| matches!(error, StoreError::Busy(_))),
        ("57014", |error| matches!(error, StoreError::Busy(_))),
        ("53200", |error| matches!(error, StoreError::Unreachable(_))),
        ("XX001", |error| matches!(error, StoreError::Broken(_))),
    ] {
        let schema = Schema::new();
        let store = store(&schema).await;
        let name = schema.name();
        client()
            .await
            .batch_execute(&format!(
                "CREATE FUNCTION {name}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 RAISE EXCEPTION 'as if' USING ERRCODE = '{code}'; END $$; \
                 CREATE TRIGGER fail BEFORE INSERT ON {name}.live FOR EACH ROW EXECUTE FUNCTION {name}.fail()"
            ))
            .await
            .expect("a trigger");
        let pushed = push(vec![task()]);
        let error = store.push(&pushed).await.expect_err("it cannot be stored");
        assert!(is_expected(&error), "{code}: {error:?}");
        client().await.batch_execute(&format!("DROP TRIGGER fail ON {name}.live")).await.expect("dropped");
        store.push(&pushed).await.expect("pushed");
        assert_eq!(store.counts().await.expect("counts").total().ready, 1, "{code}");
    }
}
