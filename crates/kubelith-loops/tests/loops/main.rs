//! The loops against a real API server of their own (durable store, TLS, watches), one per test.

mod support;

mod nodes;
mod ownership;
mod scheduling;
mod volumes;
