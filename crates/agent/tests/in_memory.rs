//! Agents and launchers run unchanged where nothing but memory and timers exists: no sockets, no kernel,
//! no processes, no signals.

mod common;

use std::time::Duration;

use common::*;
use holdfast_agent::network::plan::Hop;
use holdfast_api::ModuleConfig;
use holdfast_api::engine::{self, ExitCause, ReportState};
use holdfast_hypervisor::argv::SEED_IMAGE;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

#[test]
fn a_vm_starts_reports_and_stops() {
    in_memory(|| async {
        let cluster = Cluster::new().await;
        let a = cluster.node("a", 1).await;
        let instance = cluster.instance(|_| ()).await;
        let launched = cluster.launch(&instance, &a, "launcher-1").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(cluster.executes_in(), None, "nothing starts without the claim");

        cluster.claim(&launched, &a).await;
        let status = cluster.until_reported(ReportState::Running).await;
        assert_eq!(status.node.as_deref(), Some("a"));
        assert_eq!(status.runtime.unwrap().accelerator, "tcg");
        assert_eq!(cluster.executes_in(), Some(launched.run.clone()));
        let tables = a.outside.kernel.tables();
        let (tap, wire) = tables.wires.first_key_value().unwrap();
        assert_eq!((wire.address, tables.filter.len()), (VM, 1));
        assert_eq!(tables.routes[&VM.into()], Hop::Tap(tap.clone()));
        assert_eq!(tables.leases[tap].address, VM);

        let off = Patch::Merge(json!({ "spec": { "power": "Off" } }));
        cluster.instances().patch("vm", &PatchParams::default(), &off).await.unwrap();
        let status = cluster.until_reported(ReportState::Ended).await;
        assert_eq!(status.report.unwrap().cause, Some(ExitCause::PlatformStop));
        launched.task.await.unwrap().unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(a.outside.kernel.tables().links.is_empty(), "unplugged");
        a.stopped().await;
    });
}

/// A VM starts and moves; returns everything that was written into the API.
fn a_move() -> Vec<String> {
    in_memory(|| async {
        let cluster = Cluster::new().await;
        let (a, b, c) = (cluster.node("a", 1).await, cluster.node("b", 2).await, cluster.node("c", 3).await);
        let instance = cluster.instance(|_| ()).await;
        let source = cluster.launch(&instance, &a, "launcher-1").await;
        cluster.claim(&source, &a).await;
        cluster.until_reported(ReportState::Running).await;
        let target = cluster.launch(&instance, &b, "launcher-2").await;
        let migration = cluster.migrate(&instance, (&source, &a), (&target, &b)).await;

        let ended =
            |s: &holdfast_api::engine::InstanceStatus| s.migration.as_ref().is_some_and(|m| m.end.is_some());
        let status = cluster.until("the flip", ended).await;
        assert_eq!(status.node.as_deref(), Some("b"), "{:?}", status.migration);
        assert_eq!(status.claim.unwrap().pod_uid, target.id.pod_uid);
        assert_eq!(cluster.executes_in(), Some(target.run.clone()));
        source.task.await.unwrap().unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let via = |member: &Member| member.outside.kernel.tables().routes.get(&VM.into()).cloned();
        assert_eq!((via(&a), via(&c)), (Some(Hop::Via(b.address)), Some(Hop::Via(b.address))));
        assert!(matches!(via(&b), Some(Hop::Tap(_))));
        let written = cluster.migrations().get(&migration.name_any()).await.unwrap().status.unwrap();
        assert!(written.source.unwrap().ack_at.is_some() && written.target.unwrap().resumed_at.is_some());
        cluster.journal.records().iter().map(|record| format!("{record:?}")).collect()
    })
}

#[test]
fn a_vm_moves_between_two_nodes() {
    a_move();
}

// What a simulation rests on: no clock, no randomness and no order but those it gives.
#[test]
fn the_same_move_writes_the_same_history() {
    let (first, second) = (a_move(), a_move());
    for (number, (one, other)) in first.iter().zip(&second).enumerate() {
        assert_eq!(one, other, "write {number}");
    }
    assert_eq!(first.len(), second.len());
}

// VL §9.8
#[test]
fn unused_addresses_are_dropped_in_the_pools_that_the_settings_name_now() {
    in_memory(|| async {
        let cluster = Cluster::new().await;
        let a = cluster.node("a", 1).await;
        let dropped = || {
            let tables = a.outside.kernel.tables();
            let drops = tables.routes.iter().filter(|(_, hop)| **hop == Hop::Drop);
            drops.map(|(net, _)| net.to_string()).collect::<Vec<_>>()
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(dropped(), ["10.66.10.0/24"]);
        let configs: Api<ModuleConfig> = Api::all(cluster.client.clone());
        let cidrs = json!({ "virtualMachineCIDRs": ["10.66.10.0/24", "10.77.0.0/16"] });
        let patch = Patch::Merge(json!({ "spec": { "settings": cidrs } }));
        configs.patch("virtualization", &PatchParams::default(), &patch).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(dropped(), ["10.66.10.0/24", "10.77.0.0/16"]);
    });
}

// The guest may have its provisioning disk open: the target gets the bytes it was started with, also
// when the Secret was edited or deleted meanwhile. The old data never shows in the API.
#[test]
fn a_vm_moves_although_its_cloud_init_secret_was_edited_and_then_deleted() {
    in_memory(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.node("a", 1).await, cluster.node("b", 2).await);
        cluster.secret("seed", "#cloud-config\npassword: held-fast\n").await;
        let instance = cluster
            .instance(|hardware| {
                hardware.seed = Some(engine::Seed {
                    secret_name: Some("seed".into()),
                    instance_id: "i-1".into(),
                    hostname: "vm".into(),
                    ..engine::Seed::default()
                });
            })
            .await;
        let first = cluster.launch(&instance, &a, "launcher-1").await;
        cluster.claim(&first, &a).await;
        cluster.until_reported(ReportState::Running).await;
        let image = std::fs::read(first.run.join(SEED_IMAGE)).unwrap();

        cluster.secret("seed", "#cloud-config\npassword: changed\n").await;
        let second = cluster.launch(&instance, &b, "launcher-2").await;
        cluster.migrate(&instance, (&first, &a), (&second, &b)).await;
        cluster.until("the flip", |s| s.node.as_deref() == Some("b")).await;
        assert_eq!(std::fs::read(second.run.join(SEED_IMAGE)).unwrap(), image);

        cluster.delete_secret("seed").await;
        cluster.migrations().delete("move", &DeleteParams::default()).await.unwrap();
        let third = cluster.launch(&instance, &a, "launcher-3").await;
        cluster.migrate(&instance, (&second, &b), (&third, &a)).await;
        cluster.until("the way back", |s| s.node.as_deref() == Some("a")).await;
        assert_eq!(std::fs::read(third.run.join(SEED_IMAGE)).unwrap(), image);
        assert_eq!(cluster.executes_in(), Some(third.run.clone()));
        let told = cluster
            .journal
            .records()
            .iter()
            .filter(|r| &*r.storage != "secrets")
            .any(|record| String::from_utf8_lossy(&record.json).contains("held-fast"));
        assert!(!told, "the API holds the old password outside of the Secret");
    });
}
