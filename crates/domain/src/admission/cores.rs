//! Percentages of cores, in the two forms the API has: text on a VM, numbers on a class.

/// The number of `N%`; `None` for anything else.
pub(super) fn percent(text: &str) -> Option<i32> {
    text.strip_suffix('%')?.parse().ok()
}

/// A list of percentages as a sentence part.
pub(super) fn list(fractions: &[i32]) -> String {
    fractions.iter().map(|fraction| format!("{fraction}%")).collect::<Vec<_>>().join(", ")
}
