//! Kubernetes API semantics as pure functions: no I/O, no clock, no randomness, no async.
//!
//! The embedded API server calls this crate for everything between "bytes decoded" and "bytes
//! committed". Objects are [`serde_json::Value`]s. The central type is [`kind::Kind`]: one served
//! kind in one version, built-in or from a CustomResourceDefinition, behind one set of methods.
//!
//! One write, in the order of the Kubernetes surface specification §9.1:
//!
//! | Step | Call |
//! |---|---|
//! | body → value, duplicate keys | [`decode::body`] (JSON, YAML), [`protobuf::decode`] |
//! | unknown fields, Strict/Warn/Ignore | [`kind::Kind::prune`], [`decode::field_validation`] |
//! | defaults | [`kind::Kind::default`] |
//! | patch against the stored object | [`patch::json`], [`patch::merge`], [`patch::strategic`], [`apply::apply`] |
//! | admission of built-in kinds | [`builtin::admission`] |
//! | server-owned fields, spec/status split, generation | [`kind::Kind::prepare_create`], [`kind::Kind::prepare_update`] |
//! | field tracking of non-apply writes | [`apply::track`] |
//! | validation (metadata, schema, list types, CEL, strategy) | [`kind::Kind::validate_create`], [`kind::Kind::validate_update`] |
//! | answers | [`status::Status`], [`columns::table`] |

pub mod apply;
pub mod builtin;
pub mod cel;
pub mod columns;
pub mod crd;
pub mod decode;
pub mod field;
pub mod jsonpath;
pub mod kind;
pub mod labels;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod time;
