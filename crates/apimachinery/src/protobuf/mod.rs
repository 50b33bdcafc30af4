//! `application/vnd.kubernetes.protobuf` request bodies (KS §3.4), decode only.
//!
//! The field numbers stand in `fields.txt`, one message a line: `package.Message number:name:type`.
//! Types: `s` string, `i` integer, `b` bool, `d` double, `y` bytes, `m` map of strings, `n` map of
//! bytes, `T` Time, `U` MicroTime, `Q` Quantity, `I` IntOrString, `R` RawExtension, `F` FieldsV1,
//! `<x` map from string to x, any other word a message. `*` is a list, `?` a field whose presence
//! means something; without it a zero or empty value is absent. The name `!` is inlined.

mod wire;

use std::{collections::HashMap, sync::LazyLock};

use base64::Engine;
use chrono::DateTime;
use serde_json::{Map, Number, Value, json};

use self::wire::{Field, Payload, fields};
use crate::{status::Status, time};

/// Every Kubernetes protobuf body starts so.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting accepted.
const DEPTH_MAX: usize = 64;

/// Kinds that may arrive: apiVersion and kind to the message.
const KINDS: [(&str, &str, &str); 31] = [
    ("v1", "Binding", "core.Binding"),
    ("v1", "ConfigMap", "core.ConfigMap"),
    ("v1", "DeleteOptions", "meta.DeleteOptions"),
    ("v1", "Event", "core.Event"),
    ("v1", "Namespace", "core.Namespace"),
    ("v1", "Node", "core.Node"),
    ("v1", "PersistentVolume", "core.PersistentVolume"),
    ("v1", "PersistentVolumeClaim", "core.PersistentVolumeClaim"),
    ("v1", "Pod", "core.Pod"),
    ("v1", "ResourceQuota", "core.ResourceQuota"),
    ("v1", "Secret", "core.Secret"),
    ("v1", "Service", "core.Service"),
    ("v1", "ServiceAccount", "core.ServiceAccount"),
    ("authentication.k8s.io/v1", "SelfSubjectReview", "authn.SelfSubjectReview"),
    ("authentication.k8s.io/v1", "TokenRequest", "authn.TokenRequest"),
    ("authentication.k8s.io/v1", "TokenReview", "authn.TokenReview"),
    ("authorization.k8s.io/v1", "LocalSubjectAccessReview", "authz.LocalSubjectAccessReview"),
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview", "authz.SelfSubjectAccessReview"),
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview", "authz.SelfSubjectRulesReview"),
    ("authorization.k8s.io/v1", "SubjectAccessReview", "authz.SubjectAccessReview"),
    ("coordination.k8s.io/v1", "Lease", "coordination.Lease"),
    ("events.k8s.io/v1", "Event", "events.Event"),
    ("policy/v1", "Eviction", "policy.Eviction"),
    ("policy/v1", "PodDisruptionBudget", "policy.PodDisruptionBudget"),
    ("policy/v1beta1", "Eviction", "policy.Eviction"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "rbac.ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "rbac.ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role", "rbac.Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rbac.RoleBinding"),
    ("scheduling.k8s.io/v1", "PriorityClass", "scheduling.PriorityClass"),
    ("storage.k8s.io/v1", "StorageClass", "storage.StorageClass"),
];

#[derive(Debug)]
struct Slot {
    name: &'static str,
    /// Presence means something.
    pointer: bool,
    list: bool,
    ty: Ty,
}

#[derive(Clone, Copy, Debug)]
enum Ty {
    Text,
    Integer,
    Flag,
    Double,
    Bytes,
    Texts,
    Blobs,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Raw,
    Fields,
    /// Map from string to one of these.
    Map(&'static str),
    Message(&'static str),
}

type Message = HashMap<u64, Slot>;

static MESSAGES: LazyLock<HashMap<&'static str, Message>> =
    LazyLock::new(|| include_str!("fields.txt").lines().filter_map(message).collect());

fn message(line: &'static str) -> Option<(&'static str, Message)> {
    let (name, rest) = line.split_once(' ')?;
    let package = name.split_once('.')?.0;
    let slots = rest.split_whitespace().filter_map(|entry| {
        let (number, rest) = entry.split_once(':')?;
        let (name, ty) = rest.split_once(':')?;
        Some((number.parse().ok()?, slot(package, name, ty)))
    });
    Some((name, slots.collect()))
}

fn slot(package: &'static str, name: &'static str, ty: &'static str) -> Slot {
    let pointer = ty.starts_with('?');
    let ty = ty.trim_start_matches('?');
    let list = ty.starts_with('*');
    Slot { name, pointer, list, ty: type_of(package, ty.trim_start_matches('*')) }
}

fn type_of(package: &'static str, ty: &'static str) -> Ty {
    match ty {
        "s" => Ty::Text,
        "i" => Ty::Integer,
        "b" => Ty::Flag,
        "d" => Ty::Double,
        "y" => Ty::Bytes,
        "m" => Ty::Texts,
        "n" => Ty::Blobs,
        "T" => Ty::Time,
        "U" => Ty::MicroTime,
        "Q" => Ty::Quantity,
        "I" => Ty::IntOrString,
        "R" => Ty::Raw,
        "F" => Ty::Fields,
        _ => match ty.strip_prefix('<') {
            Some(element) => Ty::Map(element),
            None => Ty::Message(full_name(package, ty)),
        },
    }
}

/// A message of the same package, else the one of that name.
fn full_name(package: &str, name: &'static str) -> &'static str {
    let mut found = name;
    for line in include_str!("fields.txt").lines() {
        let full = line.split(' ').next().unwrap_or_default();
        if let Some((of, short)) = full.split_once('.')
            && short == name
        {
            found = full;
            if of == package {
                break;
            }
        }
    }
    found
}

/// Decodes an envelope and its object into the JSON form.
///
/// # Errors
/// 400 malformed, 415 for a kind that cannot be decoded.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    let malformed =
        || Status::bad_request("the object provided is unrecognized: couldn't decode the protobuf body");
    let body = bytes.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(body).ok_or_else(malformed)? {
        match (field.number, field.payload) {
            (1, Payload::Bytes(meta)) => {
                for field in fields(meta).ok_or_else(malformed)? {
                    match (field.number, field.payload) {
                        (1, Payload::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Payload::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let known = KINDS.iter().find(|(v, k, _)| *v == api_version && *k == kind);
    // Options may be sent under the version of the resource they are about.
    let known =
        known.or_else(|| KINDS.iter().find(|(_, k, _)| *k == "DeleteOptions" && kind == "DeleteOptions"));
    let Some((_, _, name)) = known else {
        return Err(Status::unsupported_media_type(&["application/json", "application/yaml"]));
    };
    let mut object = Map::new();
    object.insert("kind".into(), json!(kind));
    object.insert("apiVersion".into(), json!(api_version));
    object.append(&mut decode_message(name, raw, 0).ok_or_else(malformed)?);
    Ok(Value::Object(object))
}

fn decode_message(name: &str, bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    let message = MESSAGES.get(name)?;
    if depth > DEPTH_MAX {
        return None;
    }
    let mut out = Map::new();
    for field in fields(bytes)? {
        let Some(slot) = message.get(&field.number) else {
            continue;
        };
        decode_field(slot, &field, depth, &mut out)?;
    }
    Some(out)
}

fn decode_field(slot: &Slot, field: &Field<'_>, depth: usize, out: &mut Map<String, Value>) -> Option<()> {
    if let Ty::Map(_) | Ty::Texts | Ty::Blobs = slot.ty {
        let (key, value) = map_entry(slot.ty, field, depth)?;
        let map = out.entry(slot.name).or_insert_with(|| json!({}));
        map.as_object_mut()?.insert(key, value);
        return Some(());
    }
    // Lists of integers may be packed.
    if let (true, Ty::Integer, Payload::Bytes(packed)) = (slot.list, slot.ty, &field.payload) {
        let values = wire::packed(packed)?;
        let list = out.entry(slot.name).or_insert_with(|| json!([])).as_array_mut()?;
        list.extend(values.into_iter().map(signed));
        return Some(());
    }
    let value = decode_value(slot.ty, field, depth)?;
    if slot.list {
        out.entry(slot.name).or_insert_with(|| json!([])).as_array_mut()?.push(value);
    } else if slot.name == "!" {
        if let Value::Object(mut inlined) = value {
            out.append(&mut inlined);
        }
    } else if !value.is_null() && (slot.pointer || !is_zero(&value)) {
        out.insert(slot.name.to_owned(), value);
    }
    Some(())
}

/// Zero values of fields without presence are absent.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Integers are two's complement varints.
fn signed(raw: u64) -> Value {
    json!(raw.cast_signed())
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn decode_value(ty: Ty, field: &Field<'_>, depth: usize) -> Option<Value> {
    match (ty, &field.payload) {
        (Ty::Text, Payload::Bytes(bytes)) => Some(json!(text(bytes)?)),
        (Ty::Bytes, Payload::Bytes(bytes)) => {
            Some(json!(base64::engine::general_purpose::STANDARD.encode(bytes)))
        }
        (Ty::Integer, Payload::Number(raw)) => Some(signed(*raw)),
        (Ty::Flag, Payload::Number(raw)) => Some(json!(*raw != 0)),
        (Ty::Double, Payload::Number(raw)) => Number::from_f64(f64::from_bits(*raw)).map(Value::Number),
        (Ty::Time, Payload::Bytes(bytes)) => decode_time(bytes, false),
        (Ty::MicroTime, Payload::Bytes(bytes)) => decode_time(bytes, true),
        (Ty::Quantity, Payload::Bytes(bytes)) => match member(bytes, 1)? {
            Some(Payload::Bytes(bytes)) => Some(json!(text(bytes)?)),
            _ => Some(json!("0")),
        },
        (Ty::IntOrString, Payload::Bytes(bytes)) => {
            match (member(bytes, 1)?, member(bytes, 2)?, member(bytes, 3)?) {
                (Some(Payload::Number(1)), _, Some(Payload::Bytes(bytes))) => Some(json!(text(bytes)?)),
                (Some(Payload::Number(1)), ..) => Some(json!("")),
                (_, Some(Payload::Number(raw)), _) => Some(signed(raw)),
                _ => Some(json!(0)),
            }
        }
        (Ty::Raw | Ty::Fields, Payload::Bytes(bytes)) => match member(bytes, 1)? {
            Some(Payload::Bytes(raw)) => serde_json::from_slice(raw).ok(),
            _ => Some(Value::Null),
        },
        (Ty::Message(name), Payload::Bytes(bytes)) => {
            decode_message(name, bytes, depth + 1).map(Value::Object)
        }
        _ => None,
    }
}

/// The last field with a number.
fn member(bytes: &[u8], number: u64) -> Option<Option<Payload<'_>>> {
    Some(fields(bytes)?.into_iter().rfind(|field| field.number == number).map(|field| field.payload))
}

/// An all-zero time is null.
fn decode_time(bytes: &[u8], micros: bool) -> Option<Value> {
    let number = |n: u64| -> Option<i64> {
        match member(bytes, n)? {
            Some(Payload::Number(raw)) => Some(raw.cast_signed()),
            None => Some(0),
            Some(Payload::Bytes(_)) => None,
        }
    };
    let (seconds, nanos) = (number(1)?, number(2)?);
    if seconds == 0 && nanos == 0 {
        return Some(Value::Null);
    }
    let instant = DateTime::from_timestamp(seconds, u32::try_from(nanos).ok()?)?;
    Some(json!(if micros { time::rfc3339_micros(instant) } else { time::rfc3339(instant) }))
}

/// One entry of a map: key 1, value 2.
fn map_entry(ty: Ty, field: &Field<'_>, depth: usize) -> Option<(String, Value)> {
    let Payload::Bytes(bytes) = &field.payload else {
        return None;
    };
    let key = match member(bytes, 1)? {
        Some(Payload::Bytes(bytes)) => text(bytes)?,
        _ => String::new(),
    };
    let value = member(bytes, 2)?;
    let element = |ty: Ty| -> Option<Value> {
        match &value {
            Some(payload) => decode_value(ty, &Field { number: 2, payload: *payload }, depth),
            None => Some(json!("")),
        }
    };
    let value = match ty {
        Ty::Texts => element(Ty::Text)?,
        Ty::Blobs => element(Ty::Bytes)?,
        // A list inside a map travels as a message with the items.
        Ty::Map("*s") => match &value {
            Some(Payload::Bytes(bytes)) => {
                let items = fields(bytes)?.into_iter().filter(|f| f.number == 1).map(|f| {
                    if let Payload::Bytes(b) = f.payload { text(b).map(Value::String) } else { None }
                });
                Value::Array(items.collect::<Option<_>>()?)
            }
            _ => json!([]),
        },
        Ty::Map(name) => element(type_of("core", name))?,
        _ => return None,
    };
    Some((key, value))
}

#[cfg(test)]
mod tests;
