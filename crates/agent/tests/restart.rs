//! An agent dies (its runtime is dropped, as a simulation does it) and another one takes its place.

mod common;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::*;
use holdfast_agent::memory::NodeKernel;
use holdfast_agent::network::names::Mac;
use holdfast_agent::network::plan::Hop;
use holdfast_agent::network::{GuestNic, Network, Settings};
use holdfast_api::engine::{ExitCause, ReportState};

/// An API that never answers.
#[derive(Clone)]
struct Silence;

impl tower_service::Service<http::Request<kube::client::Body>> for Silence {
    type Response = http::Response<kube::client::Body>;
    type Error = Infallible;
    type Future = std::future::Pending<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<kube::client::Body>) -> Self::Future {
        std::future::pending()
    }
}

// The guest's renewals, its filter and its route do not wait for the API.
#[test]
fn a_restarted_agent_serves_its_guests_while_the_api_is_away() {
    let world = runtime();
    let (cluster, a, launched, first) = world.block_on(async {
        let cluster = Cluster::new().await;
        let a = cluster.member("a", 1).await;
        let first = runtime();
        let api = {
            let _inside = first.enter();
            cluster.api("a")
        };
        first.spawn(holdfast_agent::run(a.config(api)));
        let instance = cluster.instance(|_| ()).await;
        let launched = cluster.launch(&instance, &a, "launcher-1").await;
        cluster.claim(&launched, &a).await;
        (cluster, a, launched, first)
    });
    run_all(&[&world, &first], Duration::from_secs(2));
    world.block_on(cluster.until_reported(ReportState::Running));
    let before = a.outside.kernel.tables();
    assert_eq!((before.leases.len(), before.filter.len()), (1, 1));

    drop(first);
    run_all(&[&world], Duration::from_secs(1));
    assert!(a.outside.kernel.tables().leases.is_empty(), "nobody answers the guest");
    assert_eq!(cluster.executes_in(), Some(launched.run.clone()), "the guest runs on");

    let second = runtime();
    let silence = {
        let _inside = second.enter();
        kube::Client::new(Silence, "default")
    };
    second.spawn(holdfast_agent::run(a.config(silence)));
    run_all(&[&world, &second], Duration::from_secs(2));
    let after = a.outside.kernel.tables();
    assert_eq!((after.leases, after.filter), (before.leases, before.filter));
    assert!(matches!(after.routes[&VM.into()], Hop::Tap(_)));
    assert_eq!(cluster.executes_in(), Some(launched.run));
}

// A crash of a launcher takes its QEMU along; its agent sees an empty pod without a word.
#[test]
fn a_launcher_that_dies_is_reported_as_a_crash() {
    let (world, process) = (runtime(), runtime());
    let (cluster, a, launched) = world.block_on(async {
        let cluster = Cluster::new().await;
        let a = cluster.node("a", 1).await;
        let instance = cluster.instance(|_| ()).await;
        let launched = cluster.launch_in(process.handle(), &instance, &a, "launcher-1").await;
        cluster.claim(&launched, &a).await;
        (cluster, a, launched)
    });
    run_all(&[&world, &process], Duration::from_secs(1));
    world.block_on(cluster.until_reported(ReportState::Running));

    drop(process);
    cluster.qemu.kill(&launched.run);
    a.outside.host.ended(&launched.id.pod_uid);
    let report = world.block_on(cluster.until_reported(ReportState::Ended)).report.unwrap();
    assert_eq!((report.cause, report.cgroup_empty), (Some(ExitCause::Crash), true));
    run_all(&[&world], Duration::from_secs(1));
    assert!(a.outside.kernel.tables().links.is_empty(), "unplugged");
}

// INV-12: no guest is ever without its filter, whoever is adopted first.
#[test]
fn adopting_one_guest_keeps_the_filter_of_the_others() {
    runtime().block_on(async {
        let kernel = NodeKernel::default();
        let nic = |n: u8| GuestNic {
            instance_uid: format!("0000000{n}-0000"),
            pod_uid: format!("p{n}"),
            mac: Mac([2, 0, 0, 0, 0, n]),
            address: [10, 66, 10, n].into(),
            host_name: format!("vm{n}"),
        };
        let start = || Network::start(settings(), Arc::new(kernel.clone()));
        let guests = || kernel.tables().filter.iter().map(|guest| guest.mac).collect::<Vec<_>>();
        let first = start().await.unwrap();
        first.plug(nic(1)).await.unwrap();
        first.plug(nic(2)).await.unwrap();
        assert_eq!(guests(), [nic(1).mac, nic(2).mac]);
        drop(first);

        let second = start().await.unwrap();
        second.expect([nic(1), nic(2), nic(3)]);
        second.adopt(nic(2)).await.unwrap();
        assert_eq!(guests(), [nic(2).mac, nic(1).mac], "the third has no tap any more");
        second.remove_leftovers(&BTreeSet::from([nic(2).instance_uid])).await.unwrap();
        assert_eq!(guests(), [nic(2).mac]);
        assert_eq!(kernel.tables().links.len(), 1);
    });
}

fn settings() -> Settings {
    Settings {
        node: "a".into(),
        node_address: [10, 0, 0, 1].into(),
        uplink: "eth0".into(),
        gateway: holdfast_agent::GATEWAY,
        table: "holdfast_test".into(),
        dns: vec![],
        pools: BTreeSet::new(),
    }
}
