//! Owners, namespaces, and what every namespace has.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{World, create};

async fn map(world: &World, name: &str, owners: &[(&ConfigMap, bool)]) -> ConfigMap {
    let owners: Vec<Value> = owners
        .iter()
        .map(|(owner, blocks)| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(),
                   "controller": false, "blockOwnerDeletion": blocks})
        })
        .collect();
    let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}});
    create(&world.of::<ConfigMap>("default"), value).await
}

// KS-A49
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_follow_their_owners() {
    let world = World::new().await;
    let api = world.of::<ConfigMap>("default");
    let gone = |name: &'static str| {
        let api = api.clone();
        move || {
            let api = api.clone();
            async move { api.get_opt(name).await.unwrap().is_none().then_some(()) }
        }
    };

    // Background, two levels deep.
    let a = map(&world, "a", &[]).await;
    let b = map(&world, "b", &[(&a, false)]).await;
    map(&world, "c", &[(&b, false)]).await;
    api.delete("a", &DeleteParams::background()).await.unwrap();
    world.until("b is gone", gone("b")).await;
    world.until("c is gone", gone("c")).await;

    // Foreground: the owner goes last.
    let a = map(&world, "fa", &[]).await;
    map(&world, "fb", &[(&a, true)]).await;
    api.delete("fa", &DeleteParams::foreground()).await.unwrap();
    world.until("fa is gone", gone("fa")).await;
    assert!(api.get_opt("fb").await.unwrap().is_none());

    // Orphan: the dependent stays, without its reference.
    let a = map(&world, "oa", &[]).await;
    map(&world, "ob", &[(&a, false)]).await;
    api.delete("oa", &DeleteParams::orphan()).await.unwrap();
    world.until("oa is gone", gone("oa")).await;
    assert!(api.get("ob").await.unwrap().owner_references().is_empty());

    // Of two owners the one that remains holds; a dangling reference is removed.
    let a = map(&world, "ta", &[]).await;
    let b = map(&world, "tb", &[]).await;
    map(&world, "tc", &[(&a, false), (&b, false)]).await;
    api.delete("ta", &DeleteParams::background()).await.unwrap();
    world
        .until("the reference to ta is removed", || async {
            let owners = api.get("tc").await.unwrap().owner_references().to_vec();
            (owners.len() == 1 && owners[0].name == "tb").then_some(())
        })
        .await;

    // An owner of the same name with another uid is no owner.
    let mut imposter = map(&world, "ia", &[]).await;
    imposter.metadata.uid = Some("11111111-2222-3333-4444-555555555555".to_owned());
    map(&world, "ib", &[(&imposter, false)]).await;
    world.until("ib is gone", gone("ib")).await;
}

// KS-A51: content goes, finalizers are waited for and named, then the namespace goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_everything_in_it() {
    let world = World::new().await;
    world.node("n1").await;
    let namespaces = world.all::<Namespace>();
    create(&namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).await;
    let maps = world.of::<ConfigMap>("shop");
    create(&maps, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}})).await;
    let held = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    create(&maps, held).await;
    world
        .until("the namespace's own objects", || async {
            let account = world.of::<ServiceAccount>("shop").get_opt("default").await.unwrap();
            let ca = maps.get_opt("kube-root-ca.crt").await.unwrap();
            account.zip(ca)
        })
        .await;
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    world
        .until("the remaining finalizer is named", || async {
            let status = namespaces.get("shop").await.unwrap().status?;
            let conditions = status.conditions?;
            let left = conditions
                .iter()
                .find(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")?;
            left.message.as_deref()?.contains("example.com/hold").then_some(())
        })
        .await;
    assert!(maps.get_opt("plain").await.unwrap().is_none());
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &PatchParams::default(), &release).await.unwrap();
    world
        .until("the namespace is gone", || async {
            namespaces.get_opt("shop").await.unwrap().is_none().then_some(())
        })
        .await;
    assert!(world.of::<Pod>("shop").list(&Default::default()).await.unwrap().items.is_empty());
}
