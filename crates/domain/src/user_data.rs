//! What is suspicious about cloud-init user data: accepted as it is, but said (vm-lifecycle.md §6.1).

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

/// First lines that cloud-init understands besides `#cloud-config`.
const OTHER_FORMS: &[&str] = &[
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#cloud-config-archive",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
];

/// Sentences for people; empty when nothing is suspicious.
#[must_use]
pub fn warnings(user_data: &str) -> Vec<String> {
    if OTHER_FORMS.iter().any(|form| user_data.starts_with(form)) {
        return Vec::new();
    }
    if !user_data.starts_with("#cloud-config") {
        return vec![
            "The user data begins neither with #cloud-config nor with #!: cloud-init ignores it.".to_owned(),
        ];
    }
    let keys = match serde_saphyr::from_str::<Option<BTreeMap<String, IgnoredAny>>>(user_data) {
        Ok(keys) => keys.unwrap_or_default(),
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            return vec![format!("The user data is not valid YAML, cloud-init ignores it: {first}.")];
        }
    };
    if keys.contains_key("run_cmd") {
        return vec!["cloud-init ignores the key run_cmd; the key that runs commands is runcmd.".to_owned()];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicious_user_data_is_named() {
        let first = |text: &str| warnings(text).first().cloned().unwrap_or_default();
        for fine in [
            "#cloud-config\nusers: []\n",
            "#cloud-config\n",
            "#!/bin/sh\nexit 0\n",
            "Content-Type: multipart/mixed\n",
        ] {
            assert_eq!(warnings(fine), Vec::<String>::new(), "{fine}");
        }
        assert!(first("#cloud-config\nrun_cmd:\n- a\n").contains("runcmd"));
        assert!(first("users: []\n").contains("#cloud-config"));
        assert!(first("#cloud-config\nusers: [\n").contains("not valid YAML"));
        assert!(first("#cloud-config\n- a\n").contains("not valid YAML"));
    }
}
