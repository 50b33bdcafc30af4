//! Conditions of a VirtualMachine and their legal reasons (api.md A1.9).

use crate::macros::condition;

condition! {
    /// The class exists and is ready.
    VirtualMachineClassReady as "VirtualMachineClassReady" {
        /// Exists and is ready.
        Ready = True "VirtualMachineClassReady",
        /// Missing or not ready.
        NotReady = False "VirtualMachineClassNotReady",
    }
}

condition! {
    /// The address is bound and attached to this VM.
    VirtualMachineIPAddressReady as "VirtualMachineIPAddressReady" {
        /// Bound and attached.
        Ready = True "VirtualMachineIPAddressReady",
        /// Missing, being created, not bound, or held by another VM.
        NotReady = False "VirtualMachineIPAddressNotReady",
        /// Bound, but the guest's interface does not carry it.
        NotAssigned = False "VirtualMachineIPAddressNotAssigned",
        /// Cannot be bound.
        NotAvailable = False "VirtualMachineIPAddressNotAvailable",
    }
}

condition! {
    /// Every block device is usable by this VM.
    BlockDevicesReady as "BlockDevicesReady" {
        /// All usable.
        Ready = True "BlockDevicesReady",
        /// Some are not.
        NotReady = False "BlockDevicesNotReady",
        /// Only first-consumer volumes are missing: start is allowed.
        WaitingForFirstConsumer = False "WaitingForWaitForFirstConsumerBlockDevicesToBeReady",
        /// More than 16 devices.
        LimitExceeded = False "BlockDeviceLimitExceeded",
    }
}

condition! {
    /// First-boot configuration is usable.
    ProvisioningReady as "ProvisioningReady" {
        /// None given, or usable.
        Ready = True "ProvisioningReady",
        /// Usable but suspicious.
        ReadyWithWarnings = True "ProvisioningReadyWithWarnings",
        /// Empty, missing, wrong type or missing key.
        NotReady = False "ProvisioningNotReady",
    }
}

condition! {
    /// Resources fit the class.
    SizingPolicyMatched as "SizingPolicyMatched" {
        /// They fit.
        Matched = True "SizingPolicyMatched",
        /// They do not.
        NotMatched = False "SizingPolicyNotMatched",
        /// The class is missing.
        ClassNotFound = False "VirtualMachineClassNotFound",
        /// The class is being deleted.
        ClassTerminating = False "VirtualMachineClassTerminating",
    }
}

condition! {
    /// The guest runs.
    Running as "Running" {
        /// It runs.
        Running = True,
        /// It does not.
        NotRunning = False,
        /// The pod cannot be created, scheduled or started.
        PodNotStarted = False,
        /// The node is suspected or lost, the end not proved.
        NodeUnresponsive = Unknown,
        /// The launcher pod is being deleted.
        PodTerminating = False,
        /// The launcher pod is gone.
        PodNotFound = False,
        /// The launcher pod does not say whether it is ready.
        PodConditionMissing = False,
        /// The launcher is ready, its guest does not run.
        GuestNotRunning = False,
        /// Image, storage, crash loop or unknown state.
        InternalVirtualMachineError = False,
        /// The guest found nothing to boot from.
        NoBootableDevice = False,
    }
}

condition! {
    /// The guest agent answers.
    AgentReady as "AgentReady" {
        /// It answers.
        Ready = True "AgentReady",
        /// It does not.
        NotReady = False "AgentNotReady",
        /// The node is suspected or lost.
        NodeUnresponsive = Unknown "AgentNotReady",
    }
}

condition! {
    /// The guest agent is too old.
    AgentVersionNotSupported as "AgentVersionNotSupported" {
        /// Too old.
        NotSupported = True "AgentVersionNotSupported",
    }
}

condition! {
    /// Spec and instance agree.
    ConfigurationApplied as "ConfigurationApplied" {
        /// They agree.
        Applied = True "ConfigurationApplied",
        /// They differ.
        NotApplied = False "ConfigurationNotApplied",
    }
}

condition! {
    /// A restart is needed.
    AwaitingRestart as "AwaitingRestartToApplyConfiguration" {
        /// Changes wait for it.
        ChangesPendingRestart = True,
        /// The runtime asks for it.
        UnexpectedState = True,
        /// None is needed.
        NoRestartRequired = False,
    }
}

condition! {
    /// The VM can be live-migrated.
    Migratable as "Migratable" {
        /// It can.
        Migratable = True "VirtualMachineMigratable",
        /// It can; local disks are copied along.
        DisksShouldBeMigrating = True "VirtualMachineDisksShouldBeMigrating",
        /// A disk is not on shared storage.
        DisksNotMigratable = False "VirtualMachineDisksNotMigratable",
        /// A passed-through device.
        HostDevicesNotMigratable = False "VirtualMachineHostDevicesNotMigratable",
        /// Another reason, or no instance.
        NonMigratable = False "VirtualMachineNonMigratable",
    }
}

condition! {
    /// A migration of the VM.
    Migrating as "Migrating" {
        /// Memory is being transferred.
        InProgress = True,
        /// A migration exists, its transfer has not begun.
        Pending = False,
        /// The last one failed.
        LastMigrationFinishedWithError = False,
    }
}

condition! {
    /// The instance runs the current launcher image.
    FirmwareUpToDate as "FirmwareUpToDate" {
        /// It runs an older one.
        OutOfDate = False "FirmwareOutOfDate",
    }
}

condition! {
    /// The node is being drained and this VM must leave.
    EvictionRequired as "EvictionRequired" {
        /// It must leave.
        Required = True "EvictionRequired",
    }
}

condition! {
    /// A snapshot of the VM is being taken.
    Snapshotting as "Snapshotting" {
        /// About to start.
        WaitingForTheSnapshotToStart = True,
        /// Under way.
        SnapshottingInProgress = True,
    }
}

condition! {
    /// The guest's filesystems are frozen.
    FilesystemFrozen as "FilesystemFrozen" {
        /// Frozen.
        Frozen = True,
    }
}
