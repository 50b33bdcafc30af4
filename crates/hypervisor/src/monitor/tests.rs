use proptest::prelude::*;

use super::*;
use MigrationStatus as S;

fn limits() -> Limits {
    Limits { auto_converge: false, completion_ms: 800_000, progress_ms: 150_000 }
}

fn info(status: S, passes: u64, remaining: u64, transferred: u64, throttle: u32) -> MigrationInfo {
    MigrationInfo {
        status,
        error: None,
        blocked: vec![],
        total_bytes: 1 << 30,
        remaining_bytes: remaining,
        transferred_bytes: transferred,
        dirty_bytes_per_s: 0,
        rate_bytes_per_s: 0,
        passes,
        throttle_pct: throttle,
        downtime_ms: None,
    }
}

fn copying() -> Monitor {
    let mut m = Monitor::new(limits(), 0);
    assert_eq!(m.step(Input::Status(S::Active), 1), [Output::Copying]);
    m
}

#[test]
fn the_usual_way() {
    let mut m = copying();
    assert_eq!(m.step(Input::Status(S::PreSwitchover), 10), [Output::Suspended]);
    assert_eq!(m.step(Input::SwitchDone, 12), [Output::Continue]);
    assert_eq!(m.step(Input::Status(S::Device), 13), []);
    assert_eq!(m.step(Input::Status(S::Completed), 14), [Output::Completed]);
    assert_eq!(m.step(Input::Cancel, 15), []);
}

#[test]
fn cancel_while_copying_ends_cancelled_even_if_qemu_calls_it_failed() {
    let mut m = copying();
    assert_eq!(m.step(Input::Cancel, 10), [Output::Cancel]);
    assert_eq!(m.step(Input::Status(S::Failed), 12), [Output::Cancelled(CancelReason::Asked)]);
}

#[test]
fn no_cancel_after_continue() {
    let mut m = copying();
    m.step(Input::Status(S::PreSwitchover), 10);
    m.step(Input::SwitchDone, 12);
    assert_eq!(m.step(Input::Cancel, 13), []);
    assert!(!m.can_cancel());
}

#[test]
fn a_hung_device_stage_is_cut_after_ten_seconds_once() {
    let mut m = copying();
    m.step(Input::Status(S::PreSwitchover), 10);
    m.step(Input::SwitchDone, 12);
    assert_eq!(m.step(Input::Tick, 10_011), []);
    assert_eq!(m.step(Input::Tick, 10_012), [Output::Cut]);
    assert_eq!(m.step(Input::Tick, 10_500), []);
    let outputs = m.step(Input::Status(S::Failed), 10_600);
    assert!(matches!(&outputs[..], [Output::Failed { class: "TargetHangs", .. }]), "{outputs:?}");
}

#[test]
fn addresses_that_do_not_move_call_the_move_off() {
    let mut m = copying();
    m.step(Input::Status(S::PreSwitchover), 10);
    assert_eq!(m.step(Input::Tick, 2_010), [Output::Cancel]);
    assert_eq!(m.step(Input::Status(S::Cancelled), 2_012), [Output::Cancelled(CancelReason::SwitchTooLong)]);
}

#[test]
fn progress_limit_counts_from_the_last_byte() {
    let mut m = copying();
    assert_eq!(m.step(Input::Info(info(S::Active, 1, 900, 100, 0)), 100_000), []);
    assert_eq!(m.step(Input::Info(info(S::Active, 1, 900, 100, 0)), 249_999), []);
    assert_eq!(m.step(Input::Tick, 250_000), [Output::Cancel]);
    assert_eq!(m.step(Input::Status(S::Cancelled), 250_001), [Output::Cancelled(CancelReason::NoProgress)]);
}

#[test]
fn completion_limit_holds_although_bytes_flow() {
    let mut m = copying();
    for n in 0..8 {
        assert_eq!(m.step(Input::Info(info(S::Active, 1, 900, n + 1, 0)), n * 100_000), []);
    }
    assert_eq!(m.step(Input::Info(info(S::Active, 1, 900, 99, 0)), 800_000), [Output::Cancel]);
}

#[test]
fn not_converging_is_shown_after_three_passes_and_ten_seconds_and_taken_back() {
    let mut m = copying();
    m.step(Input::Info(info(S::Active, 1, 500, 1, 0)), 1_000);
    m.step(Input::Info(info(S::Active, 2, 600, 2, 0)), 4_000);
    m.step(Input::Info(info(S::Active, 3, 600, 3, 0)), 8_000);
    let at_four = m.step(Input::Info(info(S::Active, 4, 600, 4, 0)), 11_000);
    assert_eq!(at_four, [Output::NotConverging(true)]);
    assert_eq!(m.step(Input::Info(info(S::Active, 5, 400, 5, 0)), 12_000), [Output::NotConverging(false)]);
}

#[test]
fn downtime_is_raised_once_and_only_with_auto_converge_at_its_maximum() {
    let mut m = Monitor::new(Limits { auto_converge: true, ..limits() }, 0);
    m.step(Input::Status(S::Active), 1);
    assert_eq!(m.step(Input::Info(info(S::Active, 10, 500, 1, 90)), 100), []);
    assert_eq!(m.step(Input::Info(info(S::Active, 10, 500, 2, 99)), 200), [Output::RaiseDowntime(300)]);
    assert_eq!(m.step(Input::Info(info(S::Active, 11, 500, 3, 99)), 300), []);
    let mut safe = copying();
    assert_eq!(safe.step(Input::Info(info(S::Active, 11, 500, 3, 99)), 300), []);
}

#[test]
fn the_failure_text_is_qemus() {
    let mut m = copying();
    let mut failed = info(S::Failed, 1, 0, 0, 0);
    failed.error = Some("Connection reset by peer".into());
    let outputs = m.step(Input::Info(failed), 5);
    let text = "Connection reset by peer".to_owned();
    assert_eq!(outputs, [Output::Failed { class: "TransferFailed", text }]);
}

/// Every pair of phase and input, written out.
#[test]
fn the_whole_machine() {
    let reach: [(&str, &[Input]); 6] = [
        ("Setup", &[]),
        ("Copying", &[Input::Status(S::Active)]),
        ("Suspended", &[Input::Status(S::PreSwitchover)]),
        ("Finishing", &[Input::Status(S::PreSwitchover), Input::SwitchDone]),
        ("Cancelling", &[Input::Cancel]),
        ("Over", &[Input::Gone]),
    ];
    let statuses = [
        S::None,
        S::Setup,
        S::Active,
        S::PreSwitchover,
        S::Device,
        S::Cancelling,
        S::Cancelled,
        S::Completed,
        S::Failed,
    ];
    let mut inputs: Vec<Input> = statuses.map(Input::Status).to_vec();
    inputs.extend([Input::SwitchDone, Input::Cancel, Input::Gone]);
    let mut text = String::new();
    for (name, way) in reach {
        text += &format!("{name}\n");
        for input in &inputs {
            let mut m = Monitor::new(limits(), 0);
            for step in way {
                m.step(step.clone(), 0);
            }
            let outputs: Vec<String> = m.step(input.clone(), 0).iter().map(|o| format!("{o:?}")).collect();
            let phase = format!("{:?}", m.phase());
            let phase = phase.split(' ').next().unwrap_or_default();
            text += &format!("  {input:?} -> {phase} [{}]\n", outputs.join(", "));
        }
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/monitor/machine.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(golden).unwrap_or_default());
}

fn any_input() -> impl Strategy<Value = Input> {
    let statuses = [
        S::None,
        S::Setup,
        S::Active,
        S::PreSwitchover,
        S::Device,
        S::Cancelling,
        S::Cancelled,
        S::Completed,
        S::Failed,
        S::Unknown,
    ];
    prop_oneof![
        prop::sample::select(statuses.to_vec()).prop_map(Input::Status),
        (0u64..20).prop_map(Input::Pass),
        (prop::sample::select(statuses.to_vec()), 0u64..20, 0u64..9, 0u64..9, 0u32..100)
            .prop_map(|(s, p, r, t, q)| Input::Info(info(s, p, r, t, q))),
        Just(Input::SwitchDone),
        Just(Input::Cancel),
        Just(Input::Tick),
        Just(Input::Gone),
    ]
}

proptest! {
    #[test]
    fn ends_at_most_once_and_says_nothing_afterwards(
        steps in prop::collection::vec((any_input(), 0u64..60_000), 0..60)
    ) {
        let mut m = Monitor::new(limits(), 0);
        let (mut now, mut ends, mut continued) = (0, 0, 0);
        for (input, pause) in steps {
            now += pause;
            let over = m.phase() == Phase::Over;
            for output in m.step(input, now) {
                prop_assert!(!over);
                match output {
                    Output::Completed | Output::Cancelled(_) | Output::Failed { .. } => ends += 1,
                    Output::Continue => continued += 1,
                    Output::Cancel => prop_assert_eq!(continued, 0, "never called off after migrate-continue"),
                    _ => {}
                }
            }
        }
        prop_assert!(ends <= 1);
        prop_assert!(continued <= 1);
        prop_assert_eq!(ends == 1, m.phase() == Phase::Over);
    }
}
