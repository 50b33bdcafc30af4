//! start, stop, restart, evict: what is created, what is waited for, what is printed. The operation's
//! progress is written by the test, as the controller would.

use std::process::Stdio;

use holdfast_api::VirtualMachineOperation;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::platform::{Ended, LIMIT, Platform, text};

/// The one operation there is, as JSON.
async fn operation(platform: &Platform) -> (String, Value) {
    platform
        .until("the operation is created", || async {
            let all = platform.operations().list(&Default::default()).await.unwrap().items;
            let found: &VirtualMachineOperation = all.first()?;
            Some((found.name_any(), serde_json::to_value(found).unwrap()))
        })
        .await
}

async fn becomes(platform: &Platform, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    platform.operations().patch_status(name, &PatchParams::default(), &patch).await.expect("the status");
}

// CC-24, CC-27: no `force` unless asked for; create-only does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_only_creates() {
    let platform = Platform::new().await;
    let ended = platform.run(&["v", "start", "web", "-c"]).await;
    let (name, vmop) = operation(&platform).await;
    assert!(name.starts_with("web-") && name.len() == "web-".len() + 5, "{name}");
    let lines = format!(
        "Starting virtual machine \"default/web\"\n\
         VirtualMachine \"default/web\" starting. VirtualMachineOperation \"default/{name}\" created.\n"
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (0, lines.as_str()), "{ended:?}");
    assert_eq!((text(&vmop, "/spec/type"), text(&vmop, "/spec/virtualMachineName")), ("Start", "web"));
    assert_eq!(vmop.pointer("/spec/force"), None);
}

// CC-23's two lines and exit code; CC-28: the deadline ends the command, not the operation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_with_the_operation_or_the_deadline() {
    let platform = Platform::new().await;
    let child = platform.d8(&["v", "stop", "web", "-w"]).stdin(Stdio::null()).spawn().unwrap();
    let (name, vmop) = operation(&platform).await;
    assert_eq!(text(&vmop, "/spec/type"), "Stop");
    becomes(&platform, &name, json!({"phase": "InProgress"})).await;
    becomes(&platform, &name, json!({"phase": "Completed"})).await;
    let ended = Ended::from(tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap());
    let lines = format!(
        "Stopping virtual machine \"default/web\"\n\
         VirtualMachine \"default/web\" stopped. VirtualMachineOperation \"default/{name}\" completed.\n"
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (0, lines.as_str()), "{ended:?}");
    platform.operations().delete(&name, &Default::default()).await.unwrap();

    let ended = platform.run(&["v", "stop", "web", "-w", "-t", "1s"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("context deadline exceeded"), "{ended:?}");
    let (_, vmop) = operation(&platform).await;
    assert_eq!(vmop.pointer("/metadata/deletionTimestamp"), None);
}

// CC-26, CC-29: without -w an accepted operation suffices, even one seen only when it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_is_enough_without_waiting() {
    let platform = Platform::new().await;
    let child = platform.d8(&["v", "evict", "-n", "default", "web"]).spawn().unwrap();
    let (name, vmop) = operation(&platform).await;
    assert_eq!((text(&vmop, "/spec/type"), vmop.pointer("/spec/force")), ("Evict", None));
    becomes(&platform, &name, json!({"phase": "Completed"})).await;
    let ended = Ended::from(tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.ends_with(&format!("\"default/{name}\" completed.\n")), "{ended:?}");
}

// A failed operation is said and is a failure; force is sent when asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_told() {
    let platform = Platform::new().await;
    let child = platform.d8(&["v", "restart", "web", "-f", "-w"]).spawn().unwrap();
    let (name, vmop) = operation(&platform).await;
    assert_eq!(vmop.pointer("/spec/force"), Some(&Value::Bool(true)));
    let condition = json!({"type": "Completed", "status": "False", "reason": "NotApplicableForVirtualMachineRunPolicy",
        "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    becomes(&platform, &name, json!({"phase": "Failed", "conditions": [condition]})).await;
    let ended = Ended::from(tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap());
    let line = format!(
        "VirtualMachine \"default/web\" was not restarted. VirtualMachineOperation \"default/{name}\" failed. \
         type=\"Completed\" reason=\"NotApplicableForVirtualMachineRunPolicy\", message=\"no\".\n"
    );
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stdout.ends_with(&line), "{ended:?}");
}

// The rest of the command tree is refused, not ignored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_yet_says_so() {
    let platform = Platform::new().await;
    for verb in ["scp", "migrate", "ansible-inventory", "collect-debug-info"] {
        let ended = platform.run(&["v", verb, "x"]).await;
        assert_eq!(ended.code, 1, "{verb}: {ended:?}");
        assert!(ended.stderr.contains("is not available yet"), "{verb}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_number_of_arguments_shows_help_and_the_numbers() {
    let platform = Platform::new().await;
    for (line, verb, received) in [
        (&["v", "start"][..], "start", 0),
        (&["v", "evict", "a", "b", "--wait"], "evict", 2),
        (&["v", "-n", "shop", "console", "a", "b", "c"], "console", 3),
        (&["v", "vnc"], "vnc", 0),
        (&["v", "ssh", "--local-ssh"], "ssh", 0),
    ] {
        let ended = platform.run(line).await;
        let numbers = format!(
            "Number of input parameters is incorrect, {verb} accepts 1 arg(s), received {received}\n"
        );
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.ends_with(&numbers), "{ended:?}");
        assert!(ended.stderr.contains(&format!("Usage: d8 v {verb}")), "{ended:?}");
        assert_eq!(ended.stdout, "");
    }
    // Another mistake is told as what it is.
    let ended = platform.run(&["v", "start", "a", "--wrong"]).await;
    assert!(ended.stderr.contains("--wrong"), "{ended:?}");
    let ended = platform.run(&["v", "evict", "--help"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
}
