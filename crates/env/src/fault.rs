//! Fault points: named places at which a test makes a process stop, wait or die.
//!
//! In production every point does nothing. A test names points in the environment variable
//! `HOLDFAST_FAULTS` of the process it starts, separated by commas:
//!
//! - `flipped=kill`: the process kills itself when it reaches the point (as `kill -9` would);
//! - `copying=pause`: the process stays at the point until the file `<dir>/copying.go` appears,
//!   where `<dir>` is `HOLDFAST_FAULTS_DIR`; it creates `<dir>/copying.reached` on arrival.
//!
//! The names in use stand in first-slice.md §4.3.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// What an armed point does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the process at once, without any clean-up.
    Kill,
    /// Stay until released.
    Pause,
}

fn parse(text: &str) -> BTreeMap<String, Action> {
    text.split(',')
        .filter_map(|entry| entry.trim().split_once('='))
        .filter_map(|(point, action)| match action {
            "kill" => Some((point.to_owned(), Action::Kill)),
            "pause" => Some((point.to_owned(), Action::Pause)),
            _ => None,
        })
        .collect()
}

fn armed() -> &'static BTreeMap<String, Action> {
    static ARMED: OnceLock<BTreeMap<String, Action>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var("HOLDFAST_FAULTS").unwrap_or_default()))
}

/// Passes the fault point `name`: returns at once unless a test armed it.
pub async fn point(name: &str) {
    if crate::ambient::dies_at(name) {
        // The simulation ends this process before it is polled again: nothing after the point runs.
        return std::future::pending().await;
    }
    if let Some(pause) = crate::ambient::waits_at(name) {
        tokio::time::sleep(pause).await;
    }
    let Some(action) = armed().get(name) else {
        return;
    };
    match action {
        // Nothing may run after this, no destructor and no atexit handler: that is the point.
        Action::Kill => std::process::abort(),
        Action::Pause => {
            let dir = PathBuf::from(std::env::var_os("HOLDFAST_FAULTS_DIR").unwrap_or_default());
            let _ = std::fs::write(dir.join(format!("{name}.reached")), b"");
            while !dir.join(format!("{name}.go")).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_points_is_read_and_nonsense_is_ignored() {
        let armed = parse("flipped=kill, copying=pause,x,y=dance");
        assert_eq!(armed.len(), 2);
        assert_eq!(armed["flipped"], Action::Kill);
        assert_eq!(armed["copying"], Action::Pause);
    }
}
