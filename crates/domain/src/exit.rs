//! Why a power-on ended (vm-lifecycle.md §1.5): what the launcher reports, in the light of what
//! the platform wanted.

use holdfast_api::engine::{ExitCause, Power};

/// The cause to record.
///
/// A wish of the platform has precedence over what the guest did: a guest that powers off after
/// our power button was stopped by us, not by itself.
#[must_use]
pub fn cause(reported: ExitCause, power: Power, pod_being_deleted: bool) -> ExitCause {
    let by_guest_or_platform = matches!(
        reported,
        ExitCause::GuestShutdown | ExitCause::GuestReset | ExitCause::PlatformStop | ExitCause::Evicted
    );
    match power {
        Power::Off if by_guest_or_platform => ExitCause::PlatformStop,
        // A pod that was final because its node had rebooted may be evicted before its end is told.
        Power::On
            if pod_being_deleted && !matches!(reported, ExitCause::GuestReset | ExitCause::NodeLost) =>
        {
            ExitCause::Evicted
        }
        Power::Off | Power::On => reported,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_wish_has_precedence() {
        use ExitCause::{Crash, Evicted, GraceExpired, GuestReset, GuestShutdown, NodeLost, PlatformStop};
        for (reported, power, deleted, want) in [
            (GuestShutdown, Power::On, false, GuestShutdown),
            (GuestReset, Power::On, false, GuestReset),
            (Crash, Power::On, false, Crash),
            (GuestShutdown, Power::Off, false, PlatformStop),
            (GuestReset, Power::Off, false, PlatformStop),
            (GraceExpired, Power::Off, false, GraceExpired),
            (Crash, Power::Off, false, Crash),
            (GuestShutdown, Power::On, true, Evicted),
            (Crash, Power::On, true, Evicted),
            (GraceExpired, Power::On, true, Evicted),
            (GuestReset, Power::On, true, GuestReset),
            (NodeLost, Power::On, true, NodeLost),
        ] {
            assert_eq!(cause(reported, power, deleted), want, "{reported:?} {power:?} {deleted}");
        }
    }
}
