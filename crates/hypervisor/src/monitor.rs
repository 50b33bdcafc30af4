//! The migration monitor: decides, for the source of one move, what to do next. Pure: no clock, no I/O.
//!
//! ```text
//!  Setup --active--> Copying --pre-switchover--> Suspended --SwitchDone--> Finishing --completed--> Over
//!    |                  |                            |                        |
//!    +------------------+------- cancel, timeout ----+                        | 10 s: cut the stream
//!    |                  v                                                     v
//!    |              Cancelling --cancelled, failed--> Over (Cancelled)      Over (Failed)
//!    +-- failed --> Over (Failed)
//! ```
//!
//! Limits: spec migration-and-maintenance.md §4.5 (completion, progress), §5.3 (2 s for the hand-over of
//! addresses), §2.7 and §5.8 (10 s for the device stage), §5.5 (convergence, one raise of the downtime).

use crate::port::{MigrationInfo, MigrationStatus};

/// How long addresses may take to move while the guest is stopped, milliseconds.
pub const SWITCH_LIMIT_MS: u64 = 2_000;
/// How long the device stage may take before the stream is cut, milliseconds.
pub const FINISH_LIMIT_MS: u64 = 10_000;
/// How long a cancel may take before the stream is cut, milliseconds.
pub const CANCEL_LIMIT_MS: u64 = 30_000;
/// The downtime limit after the one raise, milliseconds.
pub const RAISED_DOWNTIME_MS: u64 = 300;
/// Passes before the downtime limit may be raised.
const RAISE_AFTER_PASSES: u64 = 10;
/// A throttle from here on counts as the maximum, percent.
const THROTTLE_MAX_PCT: u32 = 99;
/// Passes and time without a better pass-start value until "does not converge" is shown.
const STALL_PASSES: u64 = 3;
const STALL_MS: u64 = 10_000;

/// Settings of one move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The guest may be slowed down.
    pub auto_converge: bool,
    /// The whole transfer, milliseconds.
    pub completion_ms: u64,
    /// Without a byte of progress, milliseconds.
    pub progress_ms: u64,
}

/// Why a move is called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Somebody asked for it.
    Asked,
    /// Nothing moved for the progress limit.
    NoProgress,
    /// The whole transfer took longer than the completion limit.
    TooLong,
    /// Addresses did not move within [`SWITCH_LIMIT_MS`].
    SwitchTooLong,
}

/// Where the move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connecting.
    Setup,
    /// Copying while the guest runs.
    Copying,
    /// The guest is stopped; addresses are being moved.
    Suspended {
        /// Cancel then, milliseconds.
        until_ms: u64,
    },
    /// The switch-over cannot be called off any more.
    Finishing {
        /// Cut the stream then, milliseconds.
        until_ms: u64,
        /// It has been cut already.
        cut: bool,
    },
    /// A cancel was sent.
    Cancelling {
        /// Why.
        why: CancelReason,
        /// Cut the stream then, milliseconds.
        until_ms: u64,
        /// It has been cut already.
        cut: bool,
    },
    /// Finished in whichever way; nothing changes any more.
    Over,
}

/// The monitor of one move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    phase: Phase,
    limits: Limits,
    started_ms: u64,
    alive_ms: u64,
    seen_transferred: u64,
    seen_remaining: u64,
    pass: u64,
    pass_is_new: bool,
    best_start: u64,
    best_pass: u64,
    best_ms: u64,
    throttle_pct: u32,
    not_converging: bool,
    raised: bool,
    last_error: Option<String>,
}

/// What the monitor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A status event, or the status found by a query.
    Status(MigrationStatus),
    /// A pass over the memory began.
    Pass(u64),
    /// The answer of a poll.
    Info(MigrationInfo),
    /// Addresses point to the target, or cannot.
    SwitchDone,
    /// Somebody wants the move called off.
    Cancel,
    /// Time passed.
    Tick,
    /// The hypervisor's process ended.
    Gone,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Tell: memory is being copied.
    Copying,
    /// Tell: the guest is stopped, addresses may move.
    Suspended,
    /// Leave `pre-switchover`.
    Continue,
    /// Send a cancel.
    Cancel,
    /// Cut the stream out of band.
    Cut,
    /// Set this downtime limit, milliseconds.
    RaiseDowntime(u64),
    /// Show (or take back) that the move does not converge.
    NotConverging(bool),
    /// Everything is on the target: give up the right and commit.
    Completed,
    /// Called off; the guest stays.
    Cancelled(CancelReason),
    /// Failed; the guest stays.
    Failed {
        /// A CamelCase word.
        class: &'static str,
        /// A sentence for people.
        text: String,
    },
}

impl Monitor {
    /// A move that begins now.
    pub fn new(limits: Limits, now_ms: u64) -> Monitor {
        Monitor {
            phase: Phase::Setup,
            limits,
            started_ms: now_ms,
            alive_ms: now_ms,
            seen_transferred: 0,
            seen_remaining: u64::MAX,
            pass: 0,
            pass_is_new: false,
            best_start: u64::MAX,
            best_pass: 0,
            best_ms: now_ms,
            throttle_pct: 0,
            not_converging: false,
            raised: false,
            last_error: None,
        }
    }

    /// Where the move stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the right may still be kept: neither finishing nor over.
    pub fn can_cancel(&self) -> bool {
        matches!(
            self.phase,
            Phase::Setup | Phase::Copying | Phase::Suspended { .. } | Phase::Cancelling { .. }
        )
    }

    /// Takes one input and says what to do, in order.
    pub fn step(&mut self, input: Input, now_ms: u64) -> Vec<Output> {
        if self.phase == Phase::Over {
            return vec![];
        }
        let mut outputs = match input {
            Input::Status(status) => self.on_status(status, now_ms),
            Input::Pass(pass) => {
                self.pass = pass;
                self.pass_is_new = true;
                vec![]
            }
            Input::Info(info) => self.on_info(info, now_ms),
            Input::SwitchDone => match self.phase {
                Phase::Suspended { .. } => {
                    self.phase = Phase::Finishing { until_ms: now_ms + FINISH_LIMIT_MS, cut: false };
                    vec![Output::Continue]
                }
                Phase::Setup
                | Phase::Copying
                | Phase::Finishing { .. }
                | Phase::Cancelling { .. }
                | Phase::Over => {
                    vec![]
                }
            },
            Input::Cancel => self.cancel(CancelReason::Asked, now_ms),
            Input::Tick => vec![],
            Input::Gone => self.over(Output::Failed {
                class: "SourceEnded",
                text: "the guest's process ended during the move".into(),
            }),
        };
        outputs.extend(self.on_time(now_ms));
        outputs
    }

    fn over(&mut self, output: Output) -> Vec<Output> {
        self.phase = Phase::Over;
        vec![output]
    }

    fn cancel(&mut self, why: CancelReason, now_ms: u64) -> Vec<Output> {
        match self.phase {
            Phase::Setup | Phase::Copying | Phase::Suspended { .. } => {
                self.phase = Phase::Cancelling { why, until_ms: now_ms + CANCEL_LIMIT_MS, cut: false };
                vec![Output::Cancel]
            }
            Phase::Finishing { .. } | Phase::Cancelling { .. } | Phase::Over => vec![],
        }
    }

    fn on_status(&mut self, status: MigrationStatus, now_ms: u64) -> Vec<Output> {
        use MigrationStatus as S;
        match (status, self.phase) {
            (S::Active, Phase::Setup) => {
                self.phase = Phase::Copying;
                vec![Output::Copying]
            }
            (S::PreSwitchover, Phase::Setup) => {
                self.phase = Phase::Suspended { until_ms: now_ms + SWITCH_LIMIT_MS };
                vec![Output::Copying, Output::Suspended]
            }
            (S::PreSwitchover, Phase::Copying) => {
                self.phase = Phase::Suspended { until_ms: now_ms + SWITCH_LIMIT_MS };
                vec![Output::Suspended]
            }
            // A cancel that came too late did nothing: everything is on the target.
            (S::Completed, Phase::Finishing { .. } | Phase::Cancelling { .. }) => {
                self.over(Output::Completed)
            }
            // Without our `Continue` the switch-over must not have happened.
            (S::Completed, Phase::Setup | Phase::Copying | Phase::Suspended { .. }) => {
                self.over(Output::Completed)
            }
            (S::Failed | S::Cancelled, Phase::Cancelling { why, .. }) => self.over(Output::Cancelled(why)),
            (S::Failed | S::Cancelled, Phase::Finishing { cut: true, .. }) => {
                let text = format!(
                    "the target did not take the guest's devices within {} s",
                    FINISH_LIMIT_MS / 1000
                );
                self.over(Output::Failed { class: "TargetHangs", text })
            }
            (
                S::Failed | S::Cancelled,
                Phase::Setup | Phase::Copying | Phase::Suspended { .. } | Phase::Finishing { .. },
            ) => {
                let text =
                    self.last_error.take().unwrap_or_else(|| "the connection to the target broke".into());
                self.over(Output::Failed { class: "TransferFailed", text })
            }
            (
                S::None | S::Setup | S::Active | S::PreSwitchover | S::Device | S::Cancelling | S::Unknown,
                _,
            )
            | (_, Phase::Over) => vec![],
        }
    }

    fn on_info(&mut self, info: MigrationInfo, now_ms: u64) -> Vec<Output> {
        if info.transferred_bytes > self.seen_transferred || info.remaining_bytes < self.seen_remaining {
            self.alive_ms = now_ms;
        }
        self.seen_transferred = info.transferred_bytes;
        self.seen_remaining = info.remaining_bytes;
        self.throttle_pct = info.throttle_pct;
        if info.passes > self.pass {
            self.pass = info.passes;
            self.pass_is_new = true;
        }
        if std::mem::take(&mut self.pass_is_new) && info.remaining_bytes < self.best_start {
            self.best_start = info.remaining_bytes;
            self.best_pass = self.pass;
            self.best_ms = now_ms;
        }
        if info.error.is_some() {
            self.last_error = info.error;
        }
        let mut outputs = self.on_status(info.status, now_ms);
        outputs.extend(self.on_convergence(now_ms));
        outputs
    }

    fn on_convergence(&mut self, now_ms: u64) -> Vec<Output> {
        if self.phase != Phase::Copying {
            return vec![];
        }
        let at_maximum = !self.limits.auto_converge || self.throttle_pct >= THROTTLE_MAX_PCT;
        let stalled = self.pass >= self.best_pass + STALL_PASSES && now_ms >= self.best_ms + STALL_MS;
        let mut outputs = vec![];
        if (at_maximum && stalled) != self.not_converging {
            self.not_converging = !self.not_converging;
            outputs.push(Output::NotConverging(self.not_converging));
        }
        if self.limits.auto_converge
            && self.throttle_pct >= THROTTLE_MAX_PCT
            && self.pass >= RAISE_AFTER_PASSES
            && !self.raised
        {
            self.raised = true;
            outputs.push(Output::RaiseDowntime(RAISED_DOWNTIME_MS));
        }
        outputs
    }

    fn on_time(&mut self, now_ms: u64) -> Vec<Output> {
        match self.phase {
            Phase::Setup | Phase::Copying if now_ms >= self.started_ms + self.limits.completion_ms => {
                self.cancel(CancelReason::TooLong, now_ms)
            }
            Phase::Setup | Phase::Copying if now_ms >= self.alive_ms + self.limits.progress_ms => {
                self.cancel(CancelReason::NoProgress, now_ms)
            }
            Phase::Suspended { until_ms } if now_ms >= until_ms => {
                self.cancel(CancelReason::SwitchTooLong, now_ms)
            }
            Phase::Finishing { until_ms, cut: false } if now_ms >= until_ms => {
                self.phase = Phase::Finishing { until_ms, cut: true };
                vec![Output::Cut]
            }
            Phase::Cancelling { why, until_ms, cut: false } if now_ms >= until_ms => {
                self.phase = Phase::Cancelling { why, until_ms, cut: true };
                vec![Output::Cut]
            }
            Phase::Setup
            | Phase::Copying
            | Phase::Suspended { .. }
            | Phase::Finishing { .. }
            | Phase::Cancelling { .. }
            | Phase::Over => vec![],
        }
    }
}

#[cfg(test)]
mod tests;
