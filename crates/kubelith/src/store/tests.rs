//! The journal and the in-memory truth together.

use super::*;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;

fn record(rev: u64, name: &str, deleted: bool, prev_rev: u64, at: i64) -> Record {
    let json = json!({"metadata": {"name": name, "namespace": "n", "uid": "u", "resourceVersion": rev.to_string()}, "rev": rev});
    Record {
        rev,
        storage: "things".into(),
        namespace: "n".into(),
        name: name.into(),
        uid: "u".into(),
        deleted,
        prev_rev,
        json: Bytes::from(json.to_string()),
        at,
    }
}

fn names(state: &State) -> Vec<String> {
    state
        .collection("things")
        .map_or_else(Vec::new, |c| c.range(None, None).map(|o| o.key.name.to_string()).collect())
}

/// A medium and how it is opened again by the next process.
type Media = Vec<(&'static str, Box<dyn Fn() -> Result<Box<dyn Journal>, StoreError>>)>;

/// Every kind of journal, empty.
fn media(dir: &tempfile::TempDir) -> Media {
    let path = dir.path().join("store.db");
    let shared = SharedJournal::new();
    vec![
        ("sqlite", Box::new(move || Ok(Box::new(SqliteJournal::open(&path)?) as Box<dyn Journal>))),
        ("shared", Box::new(move || Ok(Box::new(shared.clone()) as Box<dyn Journal>))),
    ]
}

#[test]
fn a_reopened_store_has_objects_history_and_revision() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    for (medium, open) in media(&dir) {
        reopens(&*open).map_err(|why| format!("{medium}: {why}"))?;
    }
    Ok(())
}

fn reopens(
    open: &dyn Fn() -> Result<Box<dyn Journal>, StoreError>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut journal = open()?;
    assert_eq!(journal.load()?.rev, 0);
    journal.append(&[record(1, "a", false, 0, 100), record(2, "b", false, 0, 100)])?;
    journal.append(&[record(3, "a", false, 1, 200), record(4, "b", true, 2, 200)])?;
    drop(journal);

    let mut journal = open()?;
    let state = State::restore(journal.load()?, HistoryLimits::default())?;
    assert_eq!((state.rev(), names(&state)), (4, vec!["a".to_owned()]));
    let things = state.collection("things").ok_or("no collection")?;
    let kinds: Vec<_> =
        things.events(0, 9, 9).map_err(|_| "too old")?.iter().map(|e| (e.kind, e.object.rev)).collect();
    assert_eq!(
        kinds,
        [(EventKind::Added, 1), (EventKind::Added, 2), (EventKind::Modified, 3), (EventKind::Deleted, 4)]
    );
    let then: Vec<String> = things.at(2).map_err(|_| "too old")?.keys().map(|k| k.name.to_string()).collect();
    assert_eq!(then, ["a", "b"]);
    Ok(())
}

#[test]
fn trimming_forgets_old_changes_but_no_object_and_no_revision() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    for (medium, open) in media(&dir) {
        trims(&*open).map_err(|why| format!("{medium}: {why}"))?;
    }
    Ok(())
}

fn trims(open: &dyn Fn() -> Result<Box<dyn Journal>, StoreError>) -> Result<(), Box<dyn std::error::Error>> {
    let mut journal = open()?;
    journal.load()?;
    journal.append(&[
        record(1, "a", false, 0, 100),
        record(2, "b", false, 0, 100),
        record(3, "b", true, 2, 100),
    ])?;
    journal.append(&[record(4, "a", false, 1, 200)])?;
    journal.trim(150)?;
    drop(journal);

    let mut journal = open()?;
    let state = State::restore(journal.load()?, HistoryLimits::default())?;
    assert_eq!((state.rev(), names(&state)), (4, vec!["a".to_owned()]));
    let things = state.collection("things").ok_or("no collection")?;
    assert_eq!(things.events(2, 9, 9).map(|e| e.len()), Err(TooOld { oldest: 3 }));
    let kept = things.events(3, 9, 9).map_err(|_| "too old")?;
    // The predecessor is kept, so that a selector edge is still decided by old and new.
    assert_eq!(kept[0].previous.as_ref().map(|p| p.rev), Some(1));
    Ok(())
}

#[test]
fn a_foreign_or_newer_file_is_refused() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let foreign = dir.path().join("foreign.db");
    rusqlite::Connection::open(&foreign)?.execute_batch("PRAGMA application_id=77; CREATE TABLE t(x)")?;
    assert!(matches!(SqliteJournal::open(&foreign), Err(StoreError::Foreign { .. })));
    let newer = dir.path().join("newer.db");
    drop(SqliteJournal::open(&newer)?);
    rusqlite::Connection::open(&newer)?.execute_batch("PRAGMA user_version=99")?;
    assert!(matches!(SqliteJournal::open(&newer), Err(StoreError::Foreign { .. })));
    Ok(())
}

#[test]
fn history_is_bounded_by_bytes() -> Result<(), Box<dyn std::error::Error>> {
    let limits = HistoryLimits { seconds: 600, events: 10, bytes: 1000 };
    let mut state = State::restore(Loaded::default(), limits)?;
    let storage: Arc<str> = "things".into();
    let mut previous = None;
    for rev in 1..=100 {
        let value: Value = json!({"metadata": {"name": "a", "uid": "u"}, "pad": "x".repeat(100)});
        let object = Arc::new(Object::from_value(value, rev));
        let kind = if previous.is_none() { EventKind::Added } else { EventKind::Modified };
        state.apply(
            &storage,
            Event { kind, object: object.clone(), previous: previous.replace(object), at: 0 },
        );
    }
    let things = state.collection("things").ok_or("no collection")?;
    assert!(things.events(1, 100, 1000).is_err());
    let kept = things.events(99, 100, 1000).map_err(|_| "too old")?;
    assert_eq!(kept.len(), 1);
    Ok(())
}

#[test]
fn a_torn_write_is_unknown_to_the_next_process() -> Result<(), Box<dyn std::error::Error>> {
    let shared = SharedJournal::new();
    let mut journal = shared.clone();
    journal.load()?;
    journal.append(&[record(1, "a", false, 0, 100), record(2, "b", false, 0, 100)])?;
    journal.trim(150)?;
    journal.append(&[record(3, "a", true, 1, 200), record(4, "b", false, 2, 200)])?;
    let copy = shared.fork();
    assert_eq!(shared.drop_last(2), 2);
    let state = State::restore(shared.clone().load()?, HistoryLimits::default())?;
    assert_eq!((state.rev(), names(&state)), (2, vec!["a".to_owned(), "b".to_owned()]));
    // The old process must not write into what the next one has taken over.
    assert!(journal.append(&[record(3, "c", false, 0, 200)]).is_err());
    let state = State::restore(copy.clone().load()?, HistoryLimits::default())?;
    assert_eq!((state.rev(), names(&state)), (4, vec!["b".to_owned()]));
    Ok(())
}

#[tokio::test]
async fn durability_is_told_after_the_commit() -> Result<(), Box<dyn std::error::Error>> {
    for writing in [Writing::Thread, Writing::Inline] {
        let dir = tempfile::tempdir()?;
        for (medium, open) in media(&dir) {
            let mut journal = open()?;
            journal.load()?;
            let writer = Writer::start(journal, writing, 0, 600, |_| {})?;
            for rev in 1..=50 {
                writer.append(record(rev, &format!("o{rev}"), false, 0, 100));
            }
            if writing == Writing::Inline {
                assert_eq!(writer.durability().rev(), 50, "{medium}");
            }
            writer.durability().reached(50).await.map_err(|e| e.to_string())?;
            let durability = writer.durability().clone();
            drop(writer);
            durability.closed().await;
            assert_eq!(open()?.load()?.objects.len(), 50, "{medium}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_failing_medium_is_told_and_takes_nothing_more() -> Result<(), Box<dyn std::error::Error>> {
    for writing in [Writing::Thread, Writing::Inline] {
        let shared = SharedJournal::new();
        let mut journal = shared.clone();
        journal.load()?;
        let writer = Writer::start(Box::new(journal), writing, 0, 600, |_| {})?;
        writer.append(record(1, "a", false, 0, 100));
        writer.durability().reached(1).await.map_err(|e| e.to_string())?;
        shared.fail("disk full");
        writer.append(record(2, "b", false, 0, 100));
        assert!(writer.durability().reached(2).await.is_err_and(|why| why.contains("disk full")));
        shared.heal();
        writer.append(record(3, "c", false, 0, 100));
        assert!(writer.durability().reached(3).await.is_err());
        assert_eq!(shared.len(), 1);
    }
    Ok(())
}
