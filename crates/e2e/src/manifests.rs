//! Manifests of the tests, close to the seeds' own.

/// Users and password of seed 004: `cloud` / `cloud`.
pub const USER_DATA: &str = r#"#cloud-config
ssh_pwauth: True
users:
- name: cloud
  passwd: '$6$rounds=4096$saltsalt$fPmUsbjAuA7mnQNTajQM6ClhesyG0.yyQhvahas02ejfMAq1ykBo1RquzS0R6GgdIDlvS.kbUwDablGZKZcTP/'
  shell: /bin/bash
  sudo: ALL=(ALL) NOPASSWD:ALL
  lock_passwd: False
"#;

/// The demo image as a ClusterVirtualImage `demo`.
pub fn demo_image() -> String {
    "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: ClusterVirtualImage
metadata: {name: demo}
spec: {dataSource: {type: HTTP, http: {url: 'http://169.254.1.2/demo.qcow2'}}}
---
"
    .into()
}

/// A disk made from the demo image.
pub fn disk(name: &str) -> String {
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualDisk
metadata: {{name: {name}}}
spec:
  persistentVolumeClaim: {{size: 128Mi}}
  dataSource: {{type: ObjectRef, objectRef: {{kind: ClusterVirtualImage, name: demo}}}}
---
"
    )
}

/// A VM with one disk `NAME-root`; `extra` are further lines of its spec, two spaces deep.
pub fn vm(name: &str, extra: &str) -> String {
    let user_data: String = USER_DATA.lines().map(|l| format!("      {l}\n")).collect();
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachine
metadata: {{name: {name}}}
spec:
  virtualMachineClassName: host
  provisioning:
    type: UserData
    userData: |
{user_data}  cpu: {{cores: 1, coreFraction: 10%}}
  memory: {{size: 192Mi}}
  terminationGracePeriodSeconds: 20
  blockDeviceRefs: [{{kind: VirtualDisk, name: {name}-root}}]
{extra}
---
"
    )
}

/// An operation on a VM.
pub fn vmop(name: &str, vm: &str, kind: &str) -> String {
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineOperation
metadata: {{name: {name}}}
spec: {{virtualMachineName: {vm}, type: {kind}}}
"
    )
}

/// A VM with an empty disk: it runs at once, has no operating system that could react, and moves in
/// half a second. For what is decided outside the guest.
pub fn blank_vm(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualDisk
metadata: {{name: {name}-root}}
spec: {{persistentVolumeClaim: {{size: 4Mi}}}}
---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachine
metadata: {{name: {name}}}
spec:
  virtualMachineClassName: host
  cpu: {{cores: 1, coreFraction: 5%}}
  memory: {{size: 64Mi}}
  terminationGracePeriodSeconds: 1
  blockDeviceRefs: [{{kind: VirtualDisk, name: {name}-root}}]
{extra}
---
"
    )
}
