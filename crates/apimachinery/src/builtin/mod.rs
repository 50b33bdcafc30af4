//! Built-in kinds: catalogue, defaults, strategies, admission (KS §12).

pub mod admission;

/// One built-in kind as data.
#[derive(Debug)]
pub struct BuiltinKind {}
