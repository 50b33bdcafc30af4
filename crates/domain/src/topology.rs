//! Sockets and cores of a VM (api.md A1.5, vm-lifecycle.md §4.1).

/// Sockets for a number of cores: 1 up to 16, 2 up to 32, 4 up to 64, 8 up to 248.
fn sockets(cores: i32) -> i32 {
    match cores {
        ..=16 => 1,
        17..=32 => 2,
        33..=64 => 4,
        _ => 8,
    }
}

/// Why a number of cores is not possible, in the words of the admission error.
///
/// # Errors
/// A sentence without full stop when the number is below 1, above 248 or off the grid.
pub fn check(cores: i32) -> Result<(), String> {
    if cores < 1 {
        return Err("the number of cores must be at least 1".to_owned());
    }
    if cores > 248 {
        return Err("the number of cores should not exceed 248".to_owned());
    }
    let step = sockets(cores);
    if cores % step != 0 {
        return Err(format!("the requested number of cores must be a multiple of {step}"));
    }
    Ok(())
}

/// Sockets and cores per socket. Off the grid the number is still split, rounded up, so that an
/// object that slipped past admission gets at least what it asked for.
#[must_use]
pub fn of(cores: i32) -> (i32, i32) {
    let cores = cores.max(1);
    let sockets = sockets(cores);
    (sockets, (cores + sockets - 1) / sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_spec() {
        for (cores, want) in [
            (1, (1, 1)),
            (8, (1, 8)),
            (16, (1, 16)),
            (20, (2, 10)),
            (32, (2, 16)),
            (40, (4, 10)),
            (64, (4, 16)),
            (80, (8, 10)),
            (248, (8, 31)),
        ] {
            assert_eq!(check(cores), Ok(()), "{cores}");
            assert_eq!(of(cores), want, "{cores}");
        }
    }

    #[test]
    fn numbers_off_the_grid_are_refused_with_the_step() {
        for (cores, text) in [
            (0, "at least 1"),
            (17, "multiple of 2"),
            (31, "multiple of 2"),
            (34, "multiple of 4"),
            (66, "multiple of 8"),
            (249, "not exceed 248"),
        ] {
            assert!(check(cores).unwrap_err().contains(text), "{cores}");
        }
    }

    #[test]
    fn exactly_the_allowed_numbers_are_accepted() {
        let allowed: Vec<i32> = (1..=300).filter(|n| check(*n).is_ok()).collect();
        let mut want: Vec<i32> = (1..=16).collect();
        want.extend((18..=32).step_by(2));
        want.extend((36..=64).step_by(4));
        want.extend((72..=248).step_by(8));
        assert_eq!(allowed, want);
    }
}
