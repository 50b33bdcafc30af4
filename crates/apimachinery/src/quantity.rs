//! Resource quantities: `500m`, `1.5Gi`, `2e3`.

use std::str::FromStr;

/// A quantity, exact in nano units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {}

/// Text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct ParseQuantityError;

impl FromStr for Quantity {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let _ = text;
        todo!()
    }
}
