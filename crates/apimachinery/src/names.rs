//! Name validators with the Kubernetes texts; generated names (KS §6.1, §6.4). Every validator
//! returns the sentences that would follow `Invalid value: "…": `; none means valid.

/// Characters of generated suffixes: no vowels, nothing that is misread.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest prefix `generateName` keeps.
const PREFIX_MAX: usize = 58;

/// Completes `generateName` with five characters drawn from `entropy` (one byte each).
#[must_use]
pub fn generate(prefix: &str, entropy: [u8; 5]) -> String {
    let mut cut = prefix.len().min(PREFIX_MAX);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = prefix[..cut].to_owned();
    for byte in entropy {
        name.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    }
    name
}

fn alnum_lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            alnum_lower(*first) && alnum_lower(*last) && bytes.iter().all(|b| alnum_lower(*b) || *b == b'-')
        }
        _ => false,
    }
}

/// DNS-1123 label, at most 63 characters.
#[must_use]
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push("must be no more than 63 characters".to_owned());
    }
    if !is_label(text) {
        out.push("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".to_owned());
    }
    out
}

/// DNS-1123 subdomain, at most 253 characters.
#[must_use]
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push("must be no more than 253 characters".to_owned());
    }
    if text.is_empty() || !text.split('.').all(is_label) {
        out.push("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned());
    }
    out
}

/// DNS-1035 label (Service names), at most 63 characters.
#[must_use]
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push("must be no more than 63 characters".to_owned());
    }
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        out.push("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".to_owned());
    }
    out
}

/// Names that may stand in a URL path segment (RBAC).
#[must_use]
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

fn name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Qualified name: optional DNS prefix, `/`, name of at most 63 characters (label and annotation
/// keys, finalizers, taint keys).
#[must_use]
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            *name
        }
        _ => {
            return vec!["a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_owned()];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 characters".to_owned());
    }
    if !name_part(name) {
        out.push(format!("name part {QUALIFIED}"));
    }
    out
}

/// Label value: empty, or at most 63 characters of the qualified-name set.
#[must_use]
pub fn label_value(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push("must be no more than 63 characters".to_owned());
    }
    if !text.is_empty() && !name_part(text) {
        out.push("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".to_owned());
    }
    out
}

/// Key of a ConfigMap or Secret.
#[must_use]
pub fn config_key(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push("must be no more than 253 characters".to_owned());
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        out.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match text {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // KS-A33
    #[test]
    fn generated_names_keep_58_characters_and_five_of_the_alphabet() {
        let name = generate("evict-linux-vm-", [0, 26, 27, 5, 255]);
        assert_eq!(name, "evict-linux-vm-b9bh".to_owned() + &name[19..]);
        assert_eq!(name.len(), 20);
        assert!(name[15..].bytes().all(|b| ALPHABET.contains(&b)));
        assert_eq!(generate(&"x".repeat(80), [1; 5]).len(), 63);
    }

    #[test]
    fn names() {
        for (ok, text) in [
            (true, "a"),
            (true, "linux-vm"),
            (true, "a.b-c.d1"),
            (false, ""),
            (false, "A"),
            (false, "a_b"),
            (false, "a..b"),
            (false, "-a"),
            (false, "a-"),
        ] {
            assert_eq!(dns1123_subdomain(text).is_empty(), ok, "{text}");
        }
        assert!(dns1123_label("a.b").len() == 1 && dns1123_label(&"a".repeat(64)).len() == 1);
        assert!(dns1035_label("1a").len() == 1);
        for (ok, text) in [
            (true, "app"),
            (true, "x.io/App_1"),
            (false, "/x"),
            (false, "x/"),
            (false, "a/b/c"),
            (false, "-x"),
        ] {
            assert_eq!(qualified_name(text).is_empty(), ok, "{text}");
        }
        assert!(label_value("").is_empty() && label_value("a b").len() == 1);
        assert!(
            config_key("ca.crt").is_empty() && !config_key("a/b").is_empty() && !config_key("..x").is_empty()
        );
    }
}
