use std::{fs, path::Path};

use super::*;

fn problems(text: &str) -> Vec<String> {
    parse(text).expect_err("the manifest must be refused")
}

fn with(spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  volumes: [{{name: data, emptyDir: {{}}}}]\n{spec}  containers:\n  - name: c\n    image: i\n{container}"
    )
}

#[test]
fn every_example_is_understood() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let pods = load(&path).unwrap();
            assert_eq!(pods.len(), 1, "{}", path.display());
            assert!(!pods[0].spec.containers.is_empty());
            count += 1;
        }
    }
    assert!(count >= 13, "only {count} examples");
}

#[test]
fn values_arrive() {
    let text = with(
        "  restartPolicy: OnFailure\n  shareProcessNamespace: true\n",
        "    args: [\"a\", \"b c\"]\n    resources: {limits: {cpu: 1.5, memory: 64Mi}}\n    ports: [{containerPort: 80}]\n",
    );
    let pod = &parse(&text).unwrap()[0];
    assert_eq!(pod.restart_policy(), model::RestartPolicy::OnFailure);
    assert!(pod.spec.share_process_namespace);
    let container = &pod.spec.containers[0];
    assert_eq!(container.args, ["a", "b c"]);
    assert_eq!(container.resources.limits.cpu.unwrap().milli(), 1500);
    assert_eq!(container.resources.limits.memory.unwrap().units(), 64 << 20);
    assert_eq!(container.ports[0].container_port, 80);
    assert_eq!((pod.namespace(), pod.grace_seconds()), ("default", 30));
}

#[test]
fn a_typo_is_told_with_its_path_and_the_right_name() {
    assert_eq!(
        problems(&with("", "    comand: [x]\n")),
        ["spec.containers[0].comand: unknown field; did you mean command?"]
    );
    assert_eq!(
        problems(&with("", "    resources: {limits: {memroy: 1Mi}}\n")),
        ["spec.containers[0].resources.limits.memroy: unknown field; did you mean memory?"]
    );
    assert_eq!(
        problems(&with("", "    imagePullPolicy: Sometimes\n")),
        [
            "spec.containers[0].imagePullPolicy: \"Sometimes\" is not possible; it can be Always, IfNotPresent, Never"
        ]
    );
    assert_eq!(
        problems(&with("", "    volumeMounts: [{name: dta, mountPath: /x}]\n")),
        ["spec.containers[0].volumeMounts[0].name: the pod has no volume \"dta\"; did you mean data?"]
    );
}

#[test]
fn what_kubernetes_has_and_crisp_has_not_is_said() {
    for (container, path) in [
        ("    livenessProbe: {}\n", "livenessProbe"),
        ("    lifecycle: {}\n", "lifecycle"),
        ("    envFrom: []\n", "envFrom"),
        ("    restartPolicy: Always\n", "restartPolicy"),
        ("    volumeMounts: [{name: data, mountPath: /x, subPath: y}]\n", "volumeMounts[0].subPath"),
    ] {
        assert_eq!(problems(&with("", container)), [format!("spec.containers[0].{path}: not supported")]);
    }
    assert_eq!(problems(&with("  serviceAccountName: x\n", "")), ["spec.serviceAccountName: not supported"]);
    assert_eq!(
        problems(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {volumes: [{name: v, configMap: {name: x}}], containers: [{name: c, image: i}]}"
        ),
        ["spec.volumes[0].configMap: not supported"]
    );
}

#[test]
fn every_problem_is_told_at_once() {
    let found = problems(
        "apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: 1}}\nspec:\n  hostname: 7\n  containers:\n  - {name: c, command: echo}\n",
    );
    assert_eq!(
        found,
        [
            "metadata.labels.a: expected text (numbers and truth values need quotes), found the number 1",
            "metadata.name: missing",
            "spec.containers[0].command: expected a list, found the text \"echo\"",
            "spec.containers[0].image: missing",
            "spec.hostname: expected text (numbers and truth values need quotes), found the number 7",
        ]
    );
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    for (spec, container, expected) in [
        (
            "  restartPolicy: always\n",
            "",
            "spec.restartPolicy: \"always\" is not possible; did you mean Always?",
        ),
        ("  dnsPolicy: None\n", "", "spec.dnsConfig.nameservers: dnsPolicy None needs at least one"),
        (
            "",
            "    resources: {requests: {cpu: 2}, limits: {cpu: 1}}\n",
            "spec.containers[0].resources.requests.cpu: is more than the limit",
        ),
        (
            "",
            "    ports: [{containerPort: 70000}]\n",
            "spec.containers[0].ports[0].containerPort: not 1 to 65535",
        ),
        (
            "",
            "    volumeMounts: [{name: data, mountPath: x}]\n",
            "spec.containers[0].volumeMounts[0].mountPath: \"x\" is not an absolute path without ..",
        ),
        (
            "",
            "    env: [{name: A, valueFrom: {fieldRef: {apiVersion: v1beta1, fieldPath: metadata.name}}}]\n",
            "spec.containers[0].env[0].valueFrom.fieldRef.apiVersion: \"v1beta1\" is not possible; it can be v1",
        ),
        (
            "",
            "    ports: [{containerPort: 80, hostIP: 127.0.0.1}]\n",
            "spec.containers[0].ports[0].hostIP: needs a hostPort",
        ),
        (
            "",
            "    stdin: true\n    stdinOnce: true\n",
            "spec.containers[0].stdinOnce: not supported: nothing can attach",
        ),
        ("  initContainers: [{name: c, image: i}]\n", "", "spec.containers: the name \"c\" is there twice"),
    ] {
        assert_eq!(problems(&with(spec, container)), [expected]);
    }
    assert!(
        problems(&with("", "    resources: {limits: {memory: lots}}\n"))[0]
            .contains("\"lots\" is no quantity")
    );
}

#[test]
fn what_says_the_same_as_nothing_is_accepted() {
    let text = with(
        "",
        "    stdinOnce: false\n    env: [{name: A, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}]\n    ports: [{containerPort: 80, hostPort: 80, hostIP: 127.0.0.1}]\n",
    );
    assert!(parse(&text).is_ok());
}

#[test]
fn other_kinds_and_other_text_are_refused() {
    assert!(problems("apiVersion: apps/v1\nkind: Deployment\n")[0].contains("\"Deployment\""));
    assert!(problems("just text")[0].starts_with("kind: "));
    assert_eq!(problems(""), ["there is no pod in it"]);
    assert!(problems("metadata: {name: x\n")[0].contains("line"));
    assert!(problems("kind: Pod\nkind: Pod\n")[0].contains("kind"));
}

#[test]
fn documents_are_counted() {
    let one = with("", "");
    let other = one.replace("{name: p}", "{name: p, namespace: other}");
    assert_eq!(parse(&format!("{one}---\n{other}---\n")).unwrap().len(), 2);
    let same = one.replace("{name: p}", "{name: p, namespace: default}");
    assert_eq!(
        problems(&format!("{one}---\n{same}")),
        ["document 2: metadata.name: the pod default/p is there twice"]
    );
    let found = problems(&format!("{one}---\n{}", with("", "    imge: x\n")));
    assert_eq!(found, ["document 2: spec.containers[0].imge: unknown field; did you mean image?"]);
}
