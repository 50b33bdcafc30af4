//! The embedded Kubernetes API server of Holdfast: one process, one durable file (architecture.md §6).
//!
//! | Module | Holds |
//! |---|---|
//! | [`store`] | SQLite journal with group commit (or one in memory) below an in-memory truth and watch history |
//! | [`registry`] | what is served: built-in kinds and CustomResourceDefinitions |
//! | [`core`] | the synchronous rules of reading, writing and watching objects |
//! | [`admission`] | rules plugged into the write path by the platform |
//! | [`auth`] | certificate authority, tokens, RBAC, default roles |
//! | [`http`] | the shell: TLS, routing, negotiation, streams |
//! | [`plane`] | assembly of a control plane from its parts |
//! | [`server`] | [`run`]: a control plane with files and listeners |
//! | [`inprocess`] | clients without a network |
//! | [`testing`] | a server on a free port in a temporary directory |
//!
//! Object semantics (schemas, patches, server-side apply, selectors, Table cells, OpenAPI) live in
//! `holdfast-apimachinery`.

pub mod admission;
pub mod auth;
pub mod core;
pub mod http;
pub mod inprocess;
pub mod plane;
pub mod registry;
pub mod server;
pub mod store;
pub mod testing;

pub use admission::{Admission, AdmissionRequest, Operation, View};
pub use auth::{Pki, UserInfo};
pub use plane::{Contents, PlaneParts};
pub use server::{Config, Hooks, Server, run};
