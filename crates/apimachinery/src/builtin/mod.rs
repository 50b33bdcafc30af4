//! Built-in kinds: catalogue, defaults, strategies, admission (KS §12).

pub mod admission;

use crate::schema::Schema;

/// One built-in kind as data.
#[derive(Debug)]
pub struct BuiltinKind {}

pub(crate) fn object_meta() -> &'static Schema {
    todo!()
}
