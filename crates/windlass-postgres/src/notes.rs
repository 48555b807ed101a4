//! Notes: small records that are changed by compare-and-swap, each by one statement.

use tokio_postgres::Row;
use windlass_core::note::{NOTES_MAX, Note, NoteAnswer, NoteAsk};
use windlass_core::{Json, Timestamp};

use crate::errors::Fault;
use crate::rows::{micros, value};
use crate::tx::Tx;

/// Answers what is asked; it has been checked.
pub(crate) async fn note(tx: &mut Tx<'_>, ask: &NoteAsk) -> Result<NoteAnswer, Fault> {
    let now = tx.now.as_micros();
    match ask {
        NoteAsk::List { space, after } => list(tx, space.as_deref(), after.as_ref()).await,
        NoteAsk::Read { space, key } => Ok(NoteAnswer::Notes(read(tx, space, key).await?.into_iter().collect())),
        NoteAsk::Write { space, key, seen, value: written, ttl } => {
            let expires = now.saturating_add(micros(*ttl));
            let rows = match seen {
                // One whose time has passed is not there.
                None => {
                    tx.query(
                        "INSERT INTO windlass.note AS n (space, key, value, version, expires) \
                         VALUES ($2, $3, $4, nextval('windlass.note_version'), $5) ON CONFLICT (space, key) DO UPDATE \
                         SET value = excluded.value, version = excluded.version, expires = excluded.expires \
                         WHERE n.expires <= $1 RETURNING version",
                        &[&now, space, key, &written.as_str(), &expires],
                    )
                    .await?
                }
                Some(seen) => {
                    tx.query(
                        "UPDATE windlass.note SET value = $4, version = nextval('windlass.note_version'), expires = $5 \
                         WHERE space = $2 AND key = $3 AND version = $6 AND expires > $1 RETURNING version",
                        &[&now, space, key, &written.as_str(), &expires, seen],
                    )
                    .await?
                }
            };
            match rows.first() {
                Some(row) => Ok(NoteAnswer::Written(value(row, 0)?)),
                None => Ok(NoteAnswer::Conflict(read(tx, space, key).await?)),
            }
        }
        NoteAsk::Forget { space, key, seen } => {
            let forgotten = tx
                .execute(
                    "DELETE FROM windlass.note WHERE space = $2 AND key = $3 AND version = $4 AND expires > $1",
                    &[&now, space, key, seen],
                )
                .await?;
            match forgotten {
                0 => Ok(NoteAnswer::Conflict(read(tx, space, key).await?)),
                _ => Ok(NoteAnswer::Forgotten),
            }
        }
    }
}

async fn read(tx: &Tx<'_>, space: &str, key: &str) -> Result<Option<Note>, Fault> {
    let rows = tx
        .query(
            "SELECT space, key, value, version, expires FROM windlass.note WHERE space = $2 AND key = $3 AND expires > $1",
            &[&tx.now.as_micros(), &space, &key],
        )
        .await?;
    rows.first().map(note_of).transpose()
}

async fn list(tx: &Tx<'_>, space: Option<&str>, after: Option<&(String, String)>) -> Result<NoteAnswer, Fault> {
    // No key is empty: this is before the first of its space.
    let (from_space, from_key) =
        after.map_or((space.unwrap_or_default(), ""), |(space, key)| (space.as_str(), key.as_str()));
    let rows = tx
        .query(
            "SELECT space, key, value, version, expires FROM windlass.note WHERE (space, key) > ($2, $3) \
             AND ($4::text IS NULL OR space = $4) AND expires > $1 ORDER BY space, key LIMIT $5",
            &[&tx.now.as_micros(), &from_space, &from_key, &space, &(NOTES_MAX as i64)],
        )
        .await?;
    Ok(NoteAnswer::Notes(rows.iter().map(note_of).collect::<Result<_, _>>()?))
}

fn note_of(row: &Row) -> Result<Note, Fault> {
    Ok(Note {
        space: value(row, 0)?,
        key: value(row, 1)?,
        value: Json::parse(value::<&str>(row, 2)?).map_err(|error| Fault::damaged("note", error))?,
        version: value(row, 3)?,
        expires: Timestamp::from_micros(value(row, 4)?),
    })
}
