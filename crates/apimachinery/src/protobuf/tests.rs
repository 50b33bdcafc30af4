use serde_json::json;

use super::*;

/// Encodes a length-delimited field.
fn part(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend_from_slice(bytes);
    out
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [part(1, api_version.as_bytes()), part(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), part(1, &meta), part(2, raw), part(3, b""), part(4, b"")].concat()
}

// KS-A09
#[test]
fn secret_as_kubectl_sends_it() {
    // Go writes every plain field: empty strings, an all-zero time.
    let metadata =
        [part(1, b"s1"), part(2, b""), part(3, b"default"), part(5, b""), number(7, 0), part(8, b"")]
            .concat();
    let data = [part(1, b"k"), part(2, b"\x00\x01")].concat();
    let raw = [part(1, &metadata), part(2, &data), part(3, b"Opaque")].concat();
    let decoded = decode(&envelope("v1", "Secret", &raw)).unwrap();
    assert_eq!(
        decoded,
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s1", "namespace": "default"}, "data": {"k": "AAE="}, "type": "Opaque"})
    );
}

#[test]
fn presence_of_pointers() {
    let raw = [number(1, 0), part(4, b"Background")].concat();
    let decoded = decode(&envelope("v1", "DeleteOptions", &raw)).unwrap();
    assert_eq!(
        decoded,
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "propagationPolicy": "Background"})
    );
    // minAvailable is a pointer to an IntOrString.
    let spec = [part(1, &[number(1, 1), part(3, b"50%")].concat())].concat();
    let decoded = decode(&envelope("policy/v1", "PodDisruptionBudget", &part(2, &spec))).unwrap();
    assert_eq!(decoded["spec"], json!({"minAvailable": "50%"}));
}

#[test]
fn times_inlines_and_quantities() {
    let source = part(2, b""); // emptyDir: present and empty
    let volume = [part(1, b"v"), part(2, &source)].concat();
    let limits = [part(1, b"cpu"), part(2, &part(1, b"500m"))].concat();
    let container = [part(1, b"c"), part(8, &part(1, &limits))].concat();
    let metadata = part(8, &[number(1, 10)].concat());
    let raw = [part(1, &metadata), part(2, &[part(1, &volume), part(2, &container)].concat())].concat();
    let decoded = decode(&envelope("v1", "Pod", &raw)).unwrap();
    assert_eq!(decoded["metadata"]["creationTimestamp"], "1970-01-01T00:00:10Z");
    assert_eq!(
        decoded["spec"],
        json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}}}]})
    );
}

#[test]
fn refusals() {
    assert_eq!(decode(b"{}").unwrap_err().code, 400);
    assert_eq!(decode(&envelope("v1", "Pod", b"\xff")).unwrap_err().code, 400);
    let unknown = decode(&envelope("apps/v1", "Deployment", b"")).unwrap_err();
    assert_eq!((unknown.code, unknown.message.ends_with("application/json, application/yaml")), (415, true));
}

#[test]
fn every_message_a_field_names_is_there() {
    for (name, message) in MESSAGES.iter() {
        for slot in message.values() {
            let target = match slot.ty {
                Ty::Message(target) => target,
                Ty::Map(element) => match type_of("core", element) {
                    Ty::Message(target) if !element.starts_with('*') => target,
                    _ => continue,
                },
                _ => continue,
            };
            assert!(MESSAGES.contains_key(target), "{name}.{} wants {target}", slot.name);
        }
    }
    for (_, _, message) in KINDS {
        assert!(MESSAGES.contains_key(message), "{message}");
    }
}
