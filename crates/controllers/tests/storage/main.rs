//! Disks, images, addresses and classes on a real API server (kubelith) with its real volume
//! binder and provisioner, real downloads over loopback and the importer's real code. The test plays
//! scheduler and node runtime for importer pods.

mod addresses;
mod disks;
mod server;
mod users;
mod world;
