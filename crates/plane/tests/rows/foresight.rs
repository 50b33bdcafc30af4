//! The plan of a drain beside what the drain then does.

use holdfast_api::VirtualMachine;
use holdfast_api::drain_plan::DrainPlan;
use holdfast_api::vm::VmPhase;
use serde_json::json;

use crate::world::{World, on_a_platform};

impl World {
    async fn plan_of(&self, node: &str) -> DrainPlan {
        let observed = holdfast_foresight::observe(&self.client, node).await.unwrap();
        holdfast_foresight::plan(&observed.expect("the node is there"))
    }
}

#[test]
fn a_drain_does_what_its_plan_said() {
    on_a_platform(async |world| {
        // Two of them have one node left to go to, the third goes where there is more room.
        for (node, zone) in [("n1", "all"), ("n2", "b"), ("n3", "a")] {
            world.label_node(node, "zone", Some(zone)).await;
        }
        let zone = |zone: &str| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "zone", "operator": "In", "values": ["all", zone]}]}]}}}})
        };
        for (vm, change) in [("cache", zone("b")), ("db", zone("a")), ("web", json!({}))] {
            world.running(vm, Some("n1"), change).await;
        }
        world.only("n1").await;
        world.disk("stuck", false).await;
        world.vm("stuck", json!({"runPolicy": "AlwaysOnUnlessStoppedManually"})).await;
        world.phase("stuck", VmPhase::Running).await;
        world.cordon_all(false).await;
        // The node loop takes the cordons' taints away.
        world.pass(2).await;

        let before = world.plan_of("n1").await;
        assert!(!before.goes_through && !before.cordoned, "{before:?}");
        let blocked: Vec<_> = before.blocked.iter().map(|b| (b.name.as_str(), b.reason.as_str())).collect();
        assert_eq!(blocked, [("stuck", "NotMigratable")]);
        assert!(world.operations("").await.is_empty(), "a plan touches nothing");

        world.operate("off", "Stop", "stuck").await.unwrap();
        world.phase("stuck", VmPhase::Stopped).await;
        let plan = world.plan_of("n1").await;
        assert!(plan.goes_through, "{plan:?}");
        let order: Vec<&str> = plan.moves.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(order, ["cache", "db", "web"]);
        assert_eq!((plan.moves[0].target.as_str(), plan.moves[1].target.as_str()), ("n2", "n3"));
        assert!(plan.moves.windows(2).all(|w| w[0].starts_after_seconds < w[1].starts_after_seconds));

        assert!(world.drain("n1", 600).await);
        for planned in &plan.moves {
            let vm = world.get::<VirtualMachine>(&planned.name).await.unwrap();
            let node = vm.status.unwrap().node_name.unwrap();
            let said = planned.alternatives.iter().chain([&planned.target]);
            assert!(said.clone().any(|n| *n == node), "{} went to {node}: {planned:?}", planned.name);
        }
        assert_eq!(world.operations("evacuation-").await.len(), plan.moves.len());
        let after = world.plan_of("n1").await;
        assert!(after.goes_through && after.cordoned && after.moves.is_empty(), "{after:?}");

        // Nowhere left: n1 is cordoned still, n2 is now.
        world.cordon("n2", true).await;
        world.pass(2).await;
        let none = world.plan_of("n3").await;
        assert!(none.moves.is_empty(), "{none:?}");
        let helps = |plan: &DrainPlan, cure: &str| {
            plan.blocked.iter().all(|b| b.reason == "NoNode" && b.cures.iter().any(|c| c == cure))
        };
        assert!(!none.blocked.is_empty() && helps(&none, "uncordon node n1"), "{none:?}");
        assert!(holdfast_foresight::observe(&world.client, "n9").await.unwrap().is_none());
    });
}
