//! Panics of simulated processes: an executor swallows them, the simulation must not.

use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs a part of a simulated process.
pub fn inside<T>(work: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let result = work();
    INSIDE.set(false);
    result
}

/// From now on panics inside of simulated processes are collected instead of printed.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if INSIDE.get() {
                SEEN.with_borrow_mut(|seen| seen.push(panic.to_string()));
            } else {
                usual(panic);
            }
        }));
    });
}

/// Panics since the last call.
#[must_use]
pub fn take() -> Vec<String> {
    SEEN.with_borrow_mut(std::mem::take)
}
