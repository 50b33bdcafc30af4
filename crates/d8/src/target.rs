//! Names of virtual machines on the command line: `NAME` or `NAME.NAMESPACE` (§2).

use anyhow::{Result, bail};

/// A virtual machine and, when the name says it, its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the VM.
    pub name: String,
    /// Namespace from the name's own suffix.
    pub namespace: Option<String>,
}

impl Target {
    /// Parses `NAME` or `NAME.NAMESPACE`; a VM name has no dots.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, namespace) = match text.split_once('.') {
            None => (text, None),
            Some(("", _)) => bail!("expected name before '.'"),
            Some((_, "")) => bail!("expected namespace after '.'"),
            Some((name, namespace)) => (name, Some(namespace.to_owned())),
        };
        if name.is_empty() {
            bail!("name is empty");
        }
        Ok(Self { name: name.to_owned(), namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_errors() {
        let parsed = |t: &str| Target::parse(t).map(|t| (t.name, t.namespace)).map_err(|e| e.to_string());
        assert_eq!(parsed("web"), Ok(("web".into(), None)));
        assert_eq!(parsed("web.shop"), Ok(("web".into(), Some("shop".into()))));
        assert_eq!(parsed(""), Err("name is empty".into()));
        assert_eq!(parsed(".shop"), Err("expected name before '.'".into()));
        assert_eq!(parsed("web."), Err("expected namespace after '.'".into()));
    }
}
