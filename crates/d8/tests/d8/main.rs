//! The program `d8` itself, against a real API server and gateway. Only the node agent and the
//! operations' controller are stand-ins: what they answer is what each test is about.

mod platform;

mod drain_plan;
mod lifecycle;
mod streams;
mod terminal;
