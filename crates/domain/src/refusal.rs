//! Reading why the API refused something.

/// Whether it was a ResourceQuota: the API says so only in its text, as kube-apiserver writes it.
#[must_use]
pub fn is_quota(message: &str) -> bool {
    message.contains(" is forbidden: exceeded quota: ") || message.contains(" is forbidden: failed quota: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_told_from_other_refusals() {
        let text =
            "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1";
        assert!(is_quota(text));
        assert!(is_quota("pods \"a\" is forbidden: failed quota: q: must specify memory for: c"));
        assert!(!is_quota("pods \"a\" is forbidden: User \"x\" cannot create resource \"pods\""));
    }
}
