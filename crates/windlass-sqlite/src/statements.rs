//! Statements at hand during one transaction.
//!
//! The connection keeps prepared statements by their text; finding one there hashes the text and moves entries of a list,
//! about a tenth of the time of a claim and a settle. Within a transaction they are found by the address of the text.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use rusqlite::{CachedStatement, Connection, Statement};

use crate::errors::Fault;

type Shelf<'a> = Rc<RefCell<Vec<(&'static str, CachedStatement<'a>)>>>;

/// The statements that this transaction has used so far and that nobody uses now.
#[derive(Default)]
pub(crate) struct Statements<'a> {
    shelf: Shelf<'a>,
}

impl<'a> Statements<'a> {
    /// Lends a statement; it comes back when it is dropped.
    pub(crate) fn lend(&self, db: &'a Connection, sql: &'static str) -> Result<Lent<'a>, Fault> {
        let found = {
            let mut shelf = self.shelf.borrow_mut();
            let place = shelf.iter().position(|(text, _)| std::ptr::eq(*text, sql));
            place.map(|place| shelf.swap_remove(place).1)
        };
        let statement = match found {
            Some(statement) => statement,
            None => db.prepare_cached(sql)?,
        };
        Ok(Lent { sql, statement: Some(statement), shelf: Rc::clone(&self.shelf) })
    }
}

/// A statement that is in use.
pub(crate) struct Lent<'a> {
    sql: &'static str,
    /// Always there until it is dropped.
    statement: Option<CachedStatement<'a>>,
    shelf: Shelf<'a>,
}

impl<'a> Deref for Lent<'a> {
    type Target = Statement<'a>;
    fn deref(&self) -> &Statement<'a> {
        self.statement.as_ref().unwrap_or_else(|| unreachable!("it is there until it is dropped"))
    }
}

impl<'a> DerefMut for Lent<'a> {
    fn deref_mut(&mut self) -> &mut Statement<'a> {
        self.statement.as_mut().unwrap_or_else(|| unreachable!("it is there until it is dropped"))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(statement) = self.statement.take() {
            self.shelf.borrow_mut().push((self.sql, statement));
        }
    }
}
