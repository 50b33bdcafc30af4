//! A journal without a medium: for the simulation and for tests of the core.

use super::journal::{Journal, Loaded, Record, StoreError};

/// Keeps nothing; every record is "durable" at once.
#[derive(Debug, Default)]
pub struct MemoryJournal;

impl Journal for MemoryJournal {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(Loaded::default())
    }

    fn append(&mut self, _records: &[Record]) -> Result<(), StoreError> {
        Ok(())
    }

    fn trim(&mut self, _before: i64) -> Result<(), StoreError> {
        Ok(())
    }
}
