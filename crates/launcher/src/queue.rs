//! Which request is carried out in which phase: a pure table.
//!
//! Requests may be repeated by an agent that restarted, and a launcher carries out a migration uid once
//! (spec migration-and-maintenance.md §2.1), so besides *act* and *deny* there is *repeat*: answer as
//! before, do nothing.

use holdfast_wire::launcher::Request;

/// Where a launcher stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No QEMU yet.
    Empty,
    /// QEMU is starting.
    Preparing,
    /// Cold start: QEMU is ready and stopped.
    Prepared,
    /// The guest runs here.
    Running,
    /// QEMU is there, the guest is stopped by an error or by a user.
    Paused,
    /// Target: QEMU was started for the memory of this Migration.
    Incoming(String),
    /// Target: waits for memory and for COMMIT of this Migration.
    Listening(String),
    /// Source: the right is still here.
    MovingOut(String),
    /// Source: the right was given up on disk; waits for the target's word.
    GaveUp(String),
    /// A stop is under way, or QEMU is being ended.
    Stopping,
    /// QEMU is gone.
    Ended,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Act,
    /// It was carried out before: answer Done.
    Repeat,
    /// Answer Refused with this sentence.
    Deny(String),
}

fn deny(text: &str) -> Verdict {
    Verdict::Deny(text.to_owned())
}

impl Phase {
    /// Whether a QEMU process that answers exists.
    pub fn has_machine(&self) -> bool {
        !matches!(self, Phase::Empty | Phase::Preparing | Phase::Ended)
    }

    /// The Migration this phase belongs to.
    pub fn migration(&self) -> Option<&str> {
        match self {
            Phase::Incoming(uid) | Phase::Listening(uid) | Phase::MovingOut(uid) | Phase::GaveUp(uid) => {
                Some(uid)
            }
            Phase::Empty
            | Phase::Preparing
            | Phase::Prepared
            | Phase::Running
            | Phase::Paused
            | Phase::Stopping
            | Phase::Ended => None,
        }
    }

    /// The table. `known` tells whether a migration uid was seen by this launcher before.
    pub fn verdict(&self, request: &Request, known: impl Fn(&str) -> bool) -> Verdict {
        match request {
            Request::Hello { .. } | Request::Query => Verdict::Act,
            Request::OpenStream(_) if self.has_machine() => Verdict::Act,
            Request::OpenStream(_) => deny("the VM has no console now: QEMU does not run"),
            Request::Seed if self.has_machine() => Verdict::Act,
            Request::Seed => deny("no machine was prepared here"),
            Request::DirtyRate { .. } if *self == Phase::Running => Verdict::Act,
            Request::DirtyRate { .. } => deny("the guest does not run undisturbed now"),
            Request::Prepare(_) => self.on_prepare(),
            Request::Run => self.on_run(),
            Request::Stop { .. } => self.on_stop(),
            Request::Kill { .. } if *self == Phase::Ended => Verdict::Repeat,
            Request::Kill { .. } => Verdict::Act,
            Request::MigrateOut { migration_uid, .. } => self.on_migrate_out(known(migration_uid)),
            Request::MigrateIn { migration_uid } => self.on_migrate_in(migration_uid, known(migration_uid)),
            Request::Switch { migration_uid, .. } => match self {
                Phase::MovingOut(uid) if uid == migration_uid => Verdict::Act,
                _ if known(migration_uid) => Verdict::Repeat,
                _ => deny("no such move is under way"),
            },
            Request::Cancel { migration_uid, .. } => self.on_cancel(migration_uid, known(migration_uid)),
            Request::Settle { migration_uid, .. } => match self {
                Phase::GaveUp(uid) if uid == migration_uid => Verdict::Act,
                _ if known(migration_uid) => Verdict::Repeat,
                _ => deny("no such move waits for a word"),
            },
            Request::SetLimits { migration_uid, .. } => match self {
                Phase::MovingOut(uid) if uid == migration_uid => Verdict::Act,
                _ => deny("no such move is under way"),
            },
        }
    }

    fn on_prepare(&self) -> Verdict {
        match self {
            Phase::Empty => Verdict::Act,
            // The driver compares definition and Migration with those it prepared.
            Phase::Preparing
            | Phase::Prepared
            | Phase::Running
            | Phase::Paused
            | Phase::Incoming(_)
            | Phase::Listening(_)
            | Phase::MovingOut(_)
            | Phase::GaveUp(_) => Verdict::Repeat,
            Phase::Stopping | Phase::Ended => deny("the launcher is ending; a new power-on needs a new pod"),
        }
    }

    fn on_run(&self) -> Verdict {
        match self {
            Phase::Prepared => Verdict::Act,
            Phase::Running | Phase::Paused | Phase::MovingOut(_) => Verdict::Repeat,
            Phase::Empty | Phase::Preparing => deny("QEMU is not ready; send Prepare first"),
            Phase::Incoming(_) | Phase::Listening(_) => {
                deny("the target of a move runs only on COMMIT from the source")
            }
            Phase::GaveUp(_) => deny("the right to run was given up to the target of a move"),
            Phase::Stopping | Phase::Ended => deny("the launcher is ending; a new power-on needs a new pod"),
        }
    }

    fn on_stop(&self) -> Verdict {
        match self {
            Phase::GaveUp(_) => {
                deny("a hand-over is undecided; send Settle when the target's state is known")
            }
            Phase::Ended => Verdict::Repeat,
            Phase::Empty
            | Phase::Preparing
            | Phase::Prepared
            | Phase::Running
            | Phase::Paused
            | Phase::Incoming(_)
            | Phase::Listening(_)
            | Phase::MovingOut(_)
            | Phase::Stopping => Verdict::Act,
        }
    }

    fn on_migrate_out(&self, known: bool) -> Verdict {
        match self {
            _ if known => Verdict::Repeat,
            Phase::Running => Verdict::Act,
            Phase::MovingOut(_) | Phase::GaveUp(_) => deny("another move is under way"),
            Phase::Incoming(_) | Phase::Listening(_) => deny("this launcher is itself the target of a move"),
            Phase::Paused => deny("the guest is stopped by an error; it does not move"),
            Phase::Empty | Phase::Preparing | Phase::Prepared | Phase::Stopping | Phase::Ended => {
                deny("no guest runs here")
            }
        }
    }

    fn on_migrate_in(&self, migration_uid: &str, known: bool) -> Verdict {
        match self {
            Phase::Incoming(uid) if uid == migration_uid => Verdict::Act,
            _ if known => Verdict::Repeat,
            _ => deny("QEMU was not prepared for this move"),
        }
    }

    fn on_cancel(&self, migration_uid: &str, known: bool) -> Verdict {
        match self {
            Phase::MovingOut(uid) | Phase::Incoming(uid) | Phase::Listening(uid) if uid == migration_uid => {
                Verdict::Act
            }
            Phase::GaveUp(uid) if uid == migration_uid => {
                deny("too late: the right was given up; only the target's word decides")
            }
            // Finished one way or the other; the State says how.
            _ if known => Verdict::Repeat,
            // Never begun here: remembered, so that it will not begin later either.
            _ => Verdict::Act,
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::launcher::{MoveConfig, StopWhy, StreamKind, Verdict as Word};

    use super::*;

    fn phases() -> Vec<(&'static str, Phase)> {
        let m = || "m".to_owned();
        vec![
            ("Empty", Phase::Empty),
            ("Preparing", Phase::Preparing),
            ("Prepared", Phase::Prepared),
            ("Running", Phase::Running),
            ("Paused", Phase::Paused),
            ("Incoming", Phase::Incoming(m())),
            ("Listening", Phase::Listening(m())),
            ("MovingOut", Phase::MovingOut(m())),
            ("GaveUp", Phase::GaveUp(m())),
            ("Stopping", Phase::Stopping),
            ("Ended", Phase::Ended),
        ]
    }

    fn requests(uid: &str) -> Vec<(&'static str, Request)> {
        let config = MoveConfig {
            bandwidth_bytes_s: 1,
            downtime_ms: 1,
            auto_converge: false,
            completion_timeout_s: 1,
            progress_timeout_s: 1,
        };
        let uid = || uid.to_owned();
        vec![
            ("Run", Request::Run),
            ("Stop", Request::Stop { grace_s: 1, why: StopWhy::Power }),
            ("Kill", Request::Kill { why: StopWhy::Power }),
            ("MigrateOut", Request::MigrateOut { migration_uid: uid(), config: config.clone() }),
            ("MigrateIn", Request::MigrateIn { migration_uid: uid() }),
            ("Switch", Request::Switch { migration_uid: uid(), routes_done: true }),
            ("Cancel", Request::Cancel { migration_uid: uid(), why: String::new() }),
            ("Settle", Request::Settle { migration_uid: uid(), verdict: Word::NeverContinued }),
            ("SetLimits", Request::SetLimits { migration_uid: uid(), config }),
            ("Seed", Request::Seed),
            ("DirtyRate", Request::DirtyRate { measure_s: Some(1) }),
            ("OpenStream", Request::OpenStream(StreamKind::Serial)),
        ]
    }

    /// Every pair, written out: a change of the table shows up as a change of this file.
    #[test]
    fn the_whole_table() {
        let mut text = String::new();
        for (uid, known) in [("m", true), ("other", false)] {
            text += &format!("Migration {uid}\n");
            for (phase_name, phase) in phases() {
                text += &format!("  {phase_name}:");
                for (name, request) in requests(uid) {
                    // "m" is known to every launcher whose phase names it and to those behind it.
                    let verdict = match phase.verdict(&request, |_| known) {
                        Verdict::Act => "act",
                        Verdict::Repeat => "repeat",
                        Verdict::Deny(_) => "deny",
                    };
                    text += &format!(" {name}={verdict}");
                }
                text.push('\n');
            }
        }
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/queue.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(golden, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(golden).unwrap_or_default());
    }

    // MM §2.4 rules 3 and 7: no request but the hand-over itself lets a guest run.
    #[test]
    fn run_is_denied_wherever_another_copy_may_run() {
        let uid = || "m".to_owned();
        for phase in [Phase::Incoming(uid()), Phase::Listening(uid()), Phase::GaveUp(uid()), Phase::Ended] {
            assert!(matches!(phase.verdict(&Request::Run, |_| true), Verdict::Deny(_)), "{phase:?}");
        }
    }
}
