//! The journal on SQLite: write-ahead log, `synchronous=FULL`, so a commit has been fsynced when it returns.

use super::journal::{Journal, Loaded, Record, StoreError};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Marks the file as ours (`PRAGMA application_id`).
const APPLICATION_ID: i64 = 0x4846_4b4c;
/// Layout of the tables below; a newer file is refused, an older one would be migrated here.
const LAYOUT: i64 = 1;

/// The database of one control plane.
pub struct SqliteJournal {
    path: PathBuf,
    db: Connection,
}

impl SqliteJournal {
    /// Opens or creates the database file (mode 0600: it holds Secrets).
    ///
    /// # Errors
    /// The file cannot be opened, is locked by another process, or belongs to something else.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path).map_err(|source| StoreError::Foreign {
            path: path.display().to_string(),
            why: format!("cannot create the file: {source}"),
        })?;
        let db = Connection::open(path).map_err(|source| fault(path, "open", source))?;
        let journal = Self { path: path.to_owned(), db };
        journal.prepare()?;
        Ok(journal)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let step = |step: &'static str| move |source| fault(&self.path, step, source);
        self.db.busy_timeout(std::time::Duration::from_secs(5)).map_err(step("set timeout"))?;
        self.db
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA locking_mode=EXCLUSIVE;
                 PRAGMA cache_size=-2048; PRAGMA wal_autocheckpoint=1000; PRAGMA journal_size_limit=8388608;",
            )
            .map_err(step("configure"))?;
        let app: i64 = self.pragma("application_id")?;
        let layout: i64 = self.pragma("user_version")?;
        if app != 0 && app != APPLICATION_ID {
            return Err(
                self.foreign(format!("belongs to another application (id {app}); choose another directory"))
            );
        }
        if layout > LAYOUT {
            return Err(
                self.foreign(format!("was written by a newer version (layout {layout}); use that version"))
            );
        }
        self.db
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 CREATE TABLE IF NOT EXISTS meta(k TEXT PRIMARY KEY, v INTEGER NOT NULL) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS obj(gr TEXT NOT NULL, ns TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
                     rev INTEGER NOT NULL, json BLOB NOT NULL, PRIMARY KEY(gr, ns, name));
                 CREATE TABLE IF NOT EXISTS log(rev INTEGER PRIMARY KEY, gr TEXT NOT NULL, ns TEXT NOT NULL, name TEXT NOT NULL,
                     uid TEXT NOT NULL, deleted INTEGER NOT NULL, prev_rev INTEGER NOT NULL, at INTEGER NOT NULL, json BLOB NOT NULL);
                 PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={LAYOUT}; COMMIT;"
            ))
            .map_err(step("create tables"))
    }

    fn pragma(&self, name: &str) -> Result<i64, StoreError> {
        self.db
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
            .map_err(|e| fault(&self.path, "read header", e))
    }

    fn foreign(&self, why: String) -> StoreError {
        StoreError::Foreign { path: self.path.display().to_string(), why }
    }

    fn meta(&self, key: &str) -> rusqlite::Result<u64> {
        let value: Option<i64> =
            self.db.query_row("SELECT v FROM meta WHERE k=?1", [key], |row| row.get(0)).optional()?;
        Ok(value.map_or(0, |v| v as u64))
    }

    fn load_rows(&self) -> rusqlite::Result<Loaded> {
        let mut names = Names::default();
        let mut loaded = Loaded { rev: self.meta("rev")?, floor: self.meta("floor")?, ..Loaded::default() };
        let mut rows = self.db.prepare("SELECT gr, rev, json FROM obj")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let gr: String = row.get(0)?;
            loaded.objects.push((
                names.get(&gr),
                row.get::<_, i64>(1)? as u64,
                Bytes::from(row.get::<_, Vec<u8>>(2)?),
            ));
        }
        let mut rows = self
            .db
            .prepare("SELECT rev, gr, ns, name, uid, deleted, prev_rev, at, json FROM log ORDER BY rev")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let gr: String = row.get(1)?;
            loaded.log.push(Record {
                rev: row.get::<_, i64>(0)? as u64,
                storage: names.get(&gr),
                namespace: row.get::<_, String>(2)?.into(),
                name: row.get::<_, String>(3)?.into(),
                uid: row.get::<_, String>(4)?.into(),
                deleted: row.get(5)?,
                prev_rev: row.get::<_, i64>(6)? as u64,
                at: row.get(7)?,
                json: Bytes::from(row.get::<_, Vec<u8>>(8)?),
            });
        }
        Ok(loaded)
    }

    fn write_rows(&mut self, records: &[Record]) -> rusqlite::Result<()> {
        let tx = self.db.transaction()?;
        {
            let mut put = tx.prepare_cached(
                "INSERT OR REPLACE INTO obj(gr, ns, name, uid, rev, json) VALUES(?1,?2,?3,?4,?5,?6)",
            )?;
            let mut del = tx.prepare_cached("DELETE FROM obj WHERE gr=?1 AND ns=?2 AND name=?3")?;
            let mut log = tx.prepare_cached(
                "INSERT INTO log(rev, gr, ns, name, uid, deleted, prev_rev, at, json) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)",
            )?;
            for r in records {
                if r.deleted {
                    del.execute(params![&*r.storage, &*r.namespace, &*r.name])?;
                } else {
                    put.execute(params![
                        &*r.storage,
                        &*r.namespace,
                        &*r.name,
                        &*r.uid,
                        r.rev as i64,
                        &r.json[..]
                    ])?;
                }
                log.execute(params![
                    r.rev as i64,
                    &*r.storage,
                    &*r.namespace,
                    &*r.name,
                    &*r.uid,
                    r.deleted,
                    r.prev_rev as i64,
                    r.at,
                    &r.json[..]
                ])?;
            }
            if let Some(last) = records.last() {
                tx.prepare_cached("INSERT OR REPLACE INTO meta(k, v) VALUES('rev', ?1)")?
                    .execute([last.rev as i64])?;
            }
        }
        tx.commit()
    }

    fn trim_rows(&mut self, before: i64) -> rusqlite::Result<()> {
        let tx = self.db.transaction()?;
        let floor: Option<i64> =
            tx.query_row("SELECT MAX(rev) FROM log WHERE at < ?1", [before], |row| row.get(0))?;
        if let Some(floor) = floor {
            // A kept change needs its predecessor: a selector edge is decided by old and new (KS 8.1).
            tx.execute(
                "DELETE FROM log WHERE rev <= ?1 AND rev NOT IN (SELECT prev_rev FROM log WHERE rev > ?1)",
                [floor],
            )?;
            tx.execute("INSERT OR REPLACE INTO meta(k, v) VALUES('floor', MAX(?1, COALESCE((SELECT v FROM meta WHERE k='floor'), 0)))", [floor])?;
        }
        tx.commit()
    }
}

impl Journal for SqliteJournal {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.load_rows().map_err(|source| fault(&self.path, "load", source))
    }

    fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.write_rows(records).map_err(|source| fault(&self.path, "commit", source))
    }

    fn trim(&mut self, before: i64) -> Result<(), StoreError> {
        self.trim_rows(before).map_err(|source| fault(&self.path, "trim the history", source))
    }
}

/// One allocation per storage name instead of one per row.
#[derive(Default)]
struct Names(HashMap<String, Arc<str>>);

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let shared: Arc<str> = name.into();
        self.0.insert(name.to_owned(), shared.clone());
        shared
    }
}

fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map(drop)
}

fn fault(path: &Path, step: &'static str, source: rusqlite::Error) -> StoreError {
    StoreError::Database { path: path.display().to_string(), step, source }
}
