//! Classes of API errors that loops treat alike.

/// The object is not there (any more), or is another one of the same name.
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Somebody else wrote first, or a uid precondition failed; the next pass sees the new state.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Turns "gone" and "conflict" into `None`: the change that caused them wakes the loop again.
pub(crate) fn unless_stale<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) || is_conflict(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
