//! Every type Holdfast serves: users' kinds (`virtualization.deckhouse.io`), the engine's internal
//! kinds, the platform's settings and medik8s' NodeMaintenance, with their schemas, printer columns, condition
//! reasons and well-known names. The CRDs in `deploy/crds` are generated from here.
//!
//! One file per kind. What no derive can say is in [`mod@crds`]. No behaviour lives here: rules shared
//! by controllers and admission are in the crate `domain`.

pub mod condition;
pub mod crds;
pub mod cvi;
pub mod drain_plan;
pub mod engine;
pub mod import;
mod macros;
pub mod maintenance;
pub mod names;
pub mod quantity;
pub mod schema;
pub mod settings;
pub mod source;
pub mod vd;
pub mod vi;
pub mod vm;
pub mod vmbda;
pub mod vmclass;
pub mod vmip;
pub mod vmipl;
pub mod vmop;

pub use crds::crds;
pub use cvi::ClusterVirtualImage;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
pub use maintenance::NodeMaintenance;
pub use quantity::Quantity;
pub use settings::ModuleConfig;
pub use vd::VirtualDisk;
pub use vi::VirtualImage;
pub use vm::VirtualMachine;
pub use vmbda::VirtualMachineBlockDeviceAttachment;
pub use vmclass::VirtualMachineClass;
pub use vmip::VirtualMachineIPAddress;
pub use vmipl::VirtualMachineIPAddressLease;
pub use vmop::VirtualMachineOperation;

/// API group of the users' kinds.
pub const GROUP: &str = "virtualization.deckhouse.io";
/// Version in which the users' kinds are stored and served.
pub const VERSION: &str = "v1alpha2";
/// `apiVersion` of the users' kinds.
pub const API_VERSION: &str = "virtualization.deckhouse.io/v1alpha2";
/// API group of the engine's kinds (Instance, Migration).
pub const INTERNAL_GROUP: &str = "internal.virtualization.deckhouse.io";
