//! drain-plan: what is asked for, what is printed, the exit code. The plan is the test's.

use serde_json::{Value, json};

use crate::platform::Platform;

fn plan(goes_through: bool) -> Value {
    let blocked = json!([{"namespace": "shop", "name": "big", "reason": "NoNode", "message": "no room",
        "cures": ["stop it"]}]);
    json!({
        "kind": "DrainPlan", "node": "n1", "goesThrough": goes_through, "cordoned": false,
        "moves": [{"namespace": "shop", "name": "web", "target": "n2", "memoryBytes": 1 << 30,
            "maySlowDown": false, "startsAfterSeconds": 0.0, "seconds": 2.25}],
        "stops": [], "blocked": if goes_through { json!([]) } else { blocked },
        "limits": {"cluster": 3, "taken": 0, "outbound": 1, "bandwidth": 625_000_000},
        "totalSeconds": 2.25,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_code_says_whether_the_drain_would_go_through() {
    let platform = Platform::new().await;
    for (goes_through, code, part) in
        [(true, 0, "A drain of node n1 goes through: 1 move"), (false, 2, "Blocks: shop/big (NoNode)")]
    {
        platform.show_drain_plan("n1", &plan(goes_through));
        let ended = platform.run(&["v", "drain-plan", "n1"]).await;
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.stdout.contains(part), "{ended:?}");
        let ended = platform.run(&["v", "drain-plan", "n1", "-o", "json"]).await;
        assert_eq!(ended.code, code, "{ended:?}");
        assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap(), plan(goes_through));
    }
    let ended = platform.run(&["v", "drain-plan", "n1", "--measure"]).await;
    assert_eq!(platform.last_query().as_deref(), Some("measure=1"), "{ended:?}");
    for (node, part) in [("n9", "\"n9\" not found"), ("a/b", "is no name of a node")] {
        let ended = platform.run(&["v", "drain-plan", node]).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
}
