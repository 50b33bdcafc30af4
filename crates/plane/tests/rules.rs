//! The schemas of every users' kind and the admission rules, on the control plane that `up` starts.
//! Creations are dry runs with strict field validation unless something must be there.

use holdfast_env::{Clock, Entropy};
use holdfast_kubelith::store::SharedJournal;
use holdfast_kubelith::{PlaneParts, inprocess, plane};
use holdfast_plane::Identity;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::core::gvk::GroupVersionKind;
use serde_json::{Value, json};

const GROUP: &str = "virtualization.deckhouse.io";

struct World {
    client: Client,
}

impl World {
    async fn start() -> Self {
        let contents = holdfast_plane::contents(&["10.66.10.0/24".to_owned()]);
        let journal = Box::new(SharedJournal::new());
        let mut parts = PlaneParts::inline(journal, contents, Clock::Real, Entropy::real());
        parts.hooks.admission = holdfast_plane::admission();
        let app = plane::open(parts).unwrap();
        Self { client: inprocess::client(&app, Identity::Admin.user()) }
    }

    async fn settings(&self, cidrs: Value) -> Result<Value, (u16, String)> {
        let object = json!({
            "apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig", "metadata": {"name": "virtualization"},
            "spec": {"enabled": true, "version": 1, "settings": {"virtualMachineCIDRs": cidrs}},
        });
        let params = PatchParams::apply("test").force();
        let api = self.api("ModuleConfig");
        done(api.patch("virtualization", &params, &Patch::Apply(object)).await)
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let (group, version) = match kind {
            "ModuleConfig" => ("deckhouse.io", "v1alpha1"),
            _ => (GROUP, "v1alpha2"),
        };
        let plural = match kind {
            "VirtualMachineClass" => "virtualmachineclasses".to_owned(),
            "VirtualMachineIPAddress" => "virtualmachineipaddresses".to_owned(),
            _ => format!("{}s", kind.to_lowercase()),
        };
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, &plural);
        match kind {
            "VirtualMachineClass"
            | "VirtualMachineIPAddressLease"
            | "ClusterVirtualImage"
            | "ModuleConfig" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), "default", &resource),
        }
    }

    async fn create(
        &self,
        kind: &str,
        name: &str,
        spec: &Value,
        dry_run: bool,
    ) -> Result<Value, (u16, String)> {
        self.create_with(kind, json!({"name": name}), spec, dry_run).await
    }

    async fn create_with(
        &self,
        kind: &str,
        meta: Value,
        spec: &Value,
        dry_run: bool,
    ) -> Result<Value, (u16, String)> {
        let api = self.api(kind);
        let (group, version) =
            if kind == "ModuleConfig" { ("deckhouse.io", "v1alpha1") } else { (GROUP, "v1alpha2") };
        let object =
            json!({"apiVersion": format!("{group}/{version}"), "kind": kind, "metadata": meta, "spec": spec});
        let params = PostParams { dry_run, ..PostParams::default() };
        done(api.create(&params, &serde_json::from_value(object).unwrap()).await)
    }

    async fn patch(&self, kind: &str, name: &str, body: Value) -> Result<Value, (u16, String)> {
        done(self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(body)).await)
    }
}

fn done(result: Result<DynamicObject, kube::Error>) -> Result<Value, (u16, String)> {
    match result {
        Ok(object) => Ok(serde_json::to_value(object).unwrap()),
        Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
        Err(other) => panic!("{other}"),
    }
}

fn vm() -> Value {
    json!({
        "virtualMachineClassName": "host",
        "cpu": {"cores": 2},
        "memory": {"size": "2Gi"},
        "blockDeviceRefs": [{"kind": "VirtualDisk", "name": "web-a-root"}],
    })
}

fn with(mut spec: Value, path: &str, value: Value) -> Value {
    let mut node = &mut spec;
    for field in path.split('.') {
        node = &mut node[field];
    }
    *node = value;
    spec
}

// AP 9 (without the attachment, which is refused), AP 16 (the answer to the creation)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minimal_manifests_are_accepted_with_their_defaults() {
    let world = World::start().await;
    let http = |url: &str| json!({"type": "HTTP", "http": {"url": url}});
    for (kind, spec) in [
        ("VirtualMachineOperation", json!({"type": "Evict", "virtualMachineName": "web-a"})),
        ("VirtualMachineIPAddress", json!({"type": "Static", "staticIP": "10.66.10.80"})),
        (
            "VirtualDisk",
            json!({
                "persistentVolumeClaim": {"size": "12Gi"},
                "dataSource": {"type": "ObjectRef", "objectRef": {"kind": "ClusterVirtualImage", "name": "debian-12"}},
            }),
        ),
        (
            "VirtualImage",
            json!({"storage": "ContainerRegistry", "dataSource": http("https://images.example.org/rescue.iso")}),
        ),
        ("ClusterVirtualImage", json!({"dataSource": http("https://images.example.org/debian-12.qcow2")})),
        (
            "VirtualMachineClass",
            json!({
                "cpu": {"type": "Discovery", "discovery": {"nodeSelector": {"matchLabels": {"rack": "r1"}}}},
                "nodeSelector": {"matchLabels": {"rack": "r1"}},
                "sizingPolicies": [
                    {"cores": {"min": 1, "max": 4}, "memory": {"min": "1Gi", "max": "8Gi", "step": "512Mi"}, "coreFractions": [10, 25, 100]},
                    {"cores": {"min": 5, "max": 8}, "memory": {"perCore": {"min": "1Gi", "max": "4Gi"}}, "coreFractions": [50, 100]},
                ],
            }),
        ),
    ] {
        world.create(kind, "minimal", &spec, true).await.unwrap_or_else(|error| panic!("{kind}: {error:?}"));
    }
    let made = world.create("VirtualMachine", "web-a", &vm(), true).await.unwrap();
    let spec = &made["spec"];
    assert!(spec["cpu"].get("coreFraction").is_none(), "the class is missing: resolved when it appears");
    for (field, default) in [
        ("runPolicy", json!("AlwaysOnUnlessStoppedManually")),
        ("osType", json!("Generic")),
        ("bootloader", json!("BIOS")),
        ("enableParavirtualization", json!(true)),
        ("terminationGracePeriodSeconds", json!(60)),
        ("disruptions", json!({"restartApprovalMode": "Manual"})),
        ("liveMigrationPolicy", json!("PreferSafe")),
    ] {
        assert_eq!(spec[field], default, "{field}");
    }
    let refused =
        json!({"virtualMachineName": "web-a", "blockDeviceRef": {"kind": "VirtualDisk", "name": "d"}});
    let (code, text) =
        world.create("VirtualMachineBlockDeviceAttachment", "a", &refused, true).await.unwrap_err();
    assert_eq!(code, 403);
    assert!(text.starts_with("admission webhook \"vmbda.validate.holdfast\" denied the request: "), "{text}");
}

// AP-12, AP-13, VL-I1, VL-I7, VL-U6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_of_virtual_machines_refuse_what_is_outside() {
    let world = World::start().await;
    let secret = json!({"name": "s"});
    let provisioning = |value: Value| with(vm(), "provisioning", value);
    let user_data = |text: String| provisioning(json!({"type": "UserData", "userData": text}));
    for (what, spec, expected) in [
        ("inline", provisioning(json!({"type": "UserData", "userData": "#cloud-config"})), ""),
        ("ref", provisioning(json!({"type": "UserDataRef", "userDataRef": secret})), ""),
        ("sysprep", provisioning(json!({"type": "SysprepRef", "sysprepRef": secret})), ""),
        ("inline without data", provisioning(json!({"type": "UserData"})), "type UserData requires userData"),
        (
            "inline with ref",
            provisioning(json!({"type": "UserData", "userData": "x", "userDataRef": secret})),
            "type UserData requires userData",
        ),
        (
            "ref with inline",
            provisioning(json!({"type": "UserDataRef", "userData": "x", "userDataRef": secret})),
            "type UserDataRef requires userDataRef",
        ),
        (
            "sysprep with ref",
            provisioning(json!({"type": "SysprepRef", "sysprepRef": secret, "userDataRef": secret})),
            "type SysprepRef requires sysprepRef",
        ),
        ("2048 bytes", user_data("x".repeat(2048)), ""),
        ("2049 bytes", user_data("x".repeat(2049)), "spec.provisioning.userData"),
        ("2048 bytes, two each", user_data("ä".repeat(1024)), ""),
        ("2050 bytes, two each", user_data("ä".repeat(1025)), "longer than 2048 bytes"),
        ("fraction 0", with(vm(), "cpu.coreFraction", json!("0%")), "spec.cpu.coreFraction"),
        ("fraction 101", with(vm(), "cpu.coreFraction", json!("101%")), "spec.cpu.coreFraction"),
        ("fraction without sign", with(vm(), "cpu.coreFraction", json!("10")), "spec.cpu.coreFraction"),
        ("fraction 100", with(vm(), "cpu.coreFraction", json!("100%")), ""),
        ("cores 0", with(vm(), "cpu.cores", json!(0)), "spec.cpu.cores"),
        ("cores 249", with(vm(), "cpu.cores", json!(249)), "spec.cpu.cores"),
        ("memory", with(vm(), "memory.size", json!("2Gb")), "spec.memory.size"),
        ("policy", with(vm(), "runPolicy", json!("Sometimes")), "spec.runPolicy"),
        ("migration policy", with(vm(), "liveMigrationPolicy", json!("Never")), "spec.liveMigrationPolicy"),
        ("no devices", with(vm(), "blockDeviceRefs", json!([])), "spec.blockDeviceRefs"),
        ("no class", with(vm(), "virtualMachineClassName", json!(null)), ""),
    ] {
        let result = world.create("VirtualMachine", "web", &spec, true).await;
        match (what, expected, &result) {
            // Nothing to choose from: refused in words, not by the schema.
            ("no class", _, Err((403, text))) => {
                assert!(text.contains("no class is marked as default"), "{text}")
            }
            (_, "", Ok(_)) => (),
            (_, _, Err((422, text))) if !expected.is_empty() && text.contains(expected) => (),
            _ => panic!("{what}: {result:?}"),
        }
    }
}

// AP-20, AP-21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_other_kinds() {
    let world = World::start().await;
    let vmop = |type_: &str| json!({"type": type_, "virtualMachineName": "web"});
    let source = |value: Value| json!({"dataSource": value});
    let image = |namespace: Option<&str>| json!({"type": "ObjectRef", "objectRef": {"kind": "VirtualImage", "name": "i", "namespace": namespace}});
    let http = json!({"url": "https://h/x"});
    let class = |cpu: Value| json!({"cpu": cpu});
    let cores = |cores: Value| json!({"cpu": {"type": "Host"}, "sizingPolicies": [{"cores": cores}]});
    for (kind, spec, expected) in [
        ("VirtualMachineOperation", with(vmop("Start"), "force", json!(true)), "Start cannot be forced"),
        ("VirtualMachineOperation", with(vmop("Start"), "force", json!(false)), ""),
        (
            "VirtualMachineOperation",
            with(vmop("Evict"), "migrate", json!({"nodeSelector": {"a": "b"}})),
            "for type Migrate only",
        ),
        (
            "VirtualMachineOperation",
            with(vmop("Migrate"), "migrate", json!({"nodeSelector": {"a": "b"}})),
            "",
        ),
        ("VirtualMachineOperation", vmop("Clone"), "spec.type"),
        ("ClusterVirtualImage", source(image(None)), "namespace is required"),
        ("ClusterVirtualImage", source(image(Some("shop"))), ""),
        (
            "ClusterVirtualImage",
            source(json!({"type": "HTTP", "http": {"url": "ftp://h/x"}})),
            "spec.dataSource.http.url",
        ),
        (
            "ClusterVirtualImage",
            source(json!({"type": "HTTP", "http": http, "objectRef": {"kind": "VirtualDisk", "name": "d"}})),
            "type HTTP requires http",
        ),
        (
            "ClusterVirtualImage",
            source(json!({"type": "HTTP", "http": {"url": "https://h/x", "checksum": {"md5": "00"}}})),
            "spec.dataSource.http.checksum.md5",
        ),
        (
            "VirtualDisk",
            source(json!({"type": "ObjectRef", "objectRef": {"kind": "VirtualDisk", "name": "d"}})),
            "spec.dataSource.objectRef.kind",
        ),
        ("VirtualDisk", json!({"persistentVolumeClaim": {"size": 1_048_576}}), ""),
        ("VirtualMachineClass", class(json!({"type": "Model"})), "type Model requires model"),
        ("VirtualMachineClass", class(json!({"type": "Host", "model": "x"})), "take no model"),
        ("VirtualMachineClass", class(json!({"type": "Features", "features": []})), "spec.cpu.features"),
        ("VirtualMachineClass", cores(json!({"min": 4, "max": 4})), "max must be greater than min"),
        (
            "VirtualMachineClass",
            cores(json!({"min": 1, "max": 4, "step": 4})),
            "max must be greater than step",
        ),
        ("VirtualMachineClass", cores(json!({"min": 1, "max": 4, "step": 3})), ""),
    ] {
        let result = world.create(kind, "x", &spec, true).await;
        match &result {
            Ok(_) if expected.is_empty() => (),
            Err((422, text)) if !expected.is_empty() && text.contains(expected) => (),
            _ => panic!("{kind} {spec}: {result:?}"),
        }
    }
    world.create("VirtualMachineOperation", "op", &vmop("Stop"), false).await.unwrap();
    let (code, text) =
        world.patch("VirtualMachineOperation", "op", json!({"spec": {"force": true}})).await.unwrap_err();
    assert_eq!(code, 422);
    assert!(text.contains("spec is immutable"), "{text}");
    world.create("VirtualMachineClass", "c", &class(json!({"type": "Host"})), false).await.unwrap();
    let changed =
        world.patch("VirtualMachineClass", "c", json!({"spec": {"cpu": {"type": "HostPassthrough"}}})).await;
    assert!(changed.unwrap_err().1.contains("CPU section of a class cannot be changed"));
}

// AP 18 (creation and edit), AP-19, VL-D2, VL-D18, VL-N5, VL-N13, VL N18 (admission)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admission_answers_in_words() {
    let world = World::start().await;
    let policy =
        json!([{"cores": {"min": 1, "max": 4}, "coreFractions": [5, 10], "defaultCoreFraction": 10}]);
    let class = json!({"cpu": {"type": "Host"}, "sizingPolicies": policy});
    world.create("VirtualMachineClass", "tight", &class, false).await.unwrap();
    world.create("VirtualMachineIPAddress", "web", &json!({"type": "Auto"}), false).await.unwrap();
    let tight = with(vm(), "virtualMachineClassName", json!("tight"));
    let size = |size: &str| json!({"persistentVolumeClaim": {"size": size}});
    let refused = |result: Result<Value, (u16, String)>, expected: &str| {
        let (code, text) = result.unwrap_err();
        assert_eq!(code, 403, "{text}");
        assert!(text.contains(expected), "{text}");
    };
    refused(
        world.create("VirtualMachine", "v", &with(tight.clone(), "cpu.cores", json!(5)), true).await,
        "the ranges are 1..4",
    );
    refused(
        world.create("VirtualMachine", "web", &vm(), true).await,
        "set spec.virtualMachineIPAddressName to use it",
    );
    let label = json!({"name": "v", "labels": {"kubevirt.io/x": "y"}});
    refused(world.create_with("VirtualMachine", label, &vm(), true).await, "group's name in the label");
    refused(world.create("VirtualDisk", "d", &json!({}), true).await, "to create a blank virtual disk");
    refused(world.create("VirtualDisk", "d", &size("0"), true).await, "greater than 0");
    refused(world.create("VirtualDisk", "my.disk", &size("1Gi"), true).await, "contains a dot");
    world
        .create(
            "VirtualMachineIPAddress",
            "fixed",
            &json!({"type": "Static", "staticIP": "10.66.10.14"}),
            false,
        )
        .await
        .unwrap();
    let holder = json!({"virtualMachineIPAddressRef": {"name": "fixed", "namespace": "default"}});
    world.create("VirtualMachineIPAddressLease", "ip-10-66-10-14", &holder, false).await.unwrap();
    let same = json!({"type": "Static", "staticIP": "10.66.10.14"});
    refused(
        world.create("VirtualMachineIPAddress", "other", &same, true).await,
        "already been allocated by VirtualMachineIPAddress/fixed",
    );
    refused(world.settings(json!(["10.77.0.0/24"])).await, "10.66.10.14 is leased");
    world.settings(json!(["10.66.10.0/24", "10.77.0.0/24"])).await.unwrap();

    let made = world.create("VirtualMachine", "v", &tight, false).await.unwrap();
    assert_eq!(made["spec"]["cpu"]["coreFraction"], "10%", "the policy's default");
    let tighter = json!({"spec": {"sizingPolicies": [{"cores": {"min": 8, "max": 16}}]}});
    world.patch("VirtualMachineClass", "tight", tighter).await.unwrap();
    refused(
        world.patch("VirtualMachine", "v", json!({"metadata": {"annotations": {"a": "b"}}})).await,
        "the ranges are 8..16",
    );
    world.patch("VirtualMachine", "v", json!({"metadata": {"finalizers": ["example.org/x"]}})).await.unwrap();
    world.patch("VirtualMachine", "v", json!({"metadata": {"finalizers": []}})).await.unwrap();
}
