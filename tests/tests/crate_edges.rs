//! The crate edges that keep the parts apart (README, "How it is built"): what may depend on what, where `unsafe` may
//! stand, and that the data path never waits for an async runtime.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Member -> members it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("ferrio-shm", &[]),
    ("libaio-sys", &[]),
    ("ferrio-driver", &["ferrio-shm", "libaio-sys"]),
    ("ferrio-engine", &["ferrio-driver", "ferrio-shm"]),
    ("ferrio-api", &[]),
    ("ferrio-client", &["ferrio-shm", "ferrio-api"]),
    ("ferriod", &["ferrio-engine", "ferrio-driver", "ferrio-shm", "ferrio-api", "ferrio-client"]),
    // The driver for `bench`, whose peers do their I/O without a daemon: see `ferrio_driver::direct`.
    ("ferrioctl", &["ferrio-api", "ferrio-client", "ferrio-driver"]),
];

/// Members that may not reach an async runtime.
const DATA_PATH: &[&str] = &["ferrio-shm", "libaio-sys", "ferrio-driver", "ferrio-engine"];

/// Members that may contain `unsafe`.
const MAY_BE_UNSAFE: &[&str] = &["ferrio-shm", "libaio-sys", "ferrio-driver", "ferrio-tests"];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).exec().expect("cargo metadata runs")
}

#[test]
fn members_depend_only_along_the_edges() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let members: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    for package in metadata.workspace_packages() {
        if package.name.as_str() == "ferrio-tests" {
            continue;
        }
        let edges = allowed
            .get(package.name.as_str())
            .unwrap_or_else(|| panic!("new member {}: give it its edges", package.name));
        for dependency in &package.dependencies {
            let inside = members.contains(dependency.name.as_str());
            let allowed =
                edges.contains(&dependency.name.as_str()) || dependency.name == package.name.as_str();
            assert!(!inside || allowed, "{} -> {} is not an allowed edge", package.name, dependency.name);
        }
    }
}

#[test]
fn the_data_path_does_not_reach_an_async_runtime() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("resolved");
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    for member in
        metadata.workspace_packages().iter().filter(|package| DATA_PATH.contains(&package.name.as_str()))
    {
        let mut seen = BTreeSet::new();
        let mut next = vec![&member.id];
        while let Some(id) = next.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = resolve.nodes.iter().find(|node| node.id == *id).expect("every package has a node");
            let normal = |dep: &&cargo_metadata::NodeDep| {
                dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            };
            next.extend(node.deps.iter().filter(normal).map(|dep| &dep.pkg));
        }
        let reached: Vec<&str> = seen
            .iter()
            .map(|id| names[*id])
            .filter(|name| ["tokio", "tonic", "mio", "hyper"].contains(name))
            .collect();
        assert!(reached.is_empty(), "{} reaches {reached:?}", member.name);
    }
}

#[test]
fn unsafe_code_is_forbidden_everywhere_else() {
    for package in metadata().workspace_packages() {
        if MAY_BE_UNSAFE.contains(&package.name.as_str()) {
            continue;
        }
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let source = std::fs::read_to_string(&target.src_path).expect("a target has a source file");
            assert!(
                source.contains("#![forbid(unsafe_code)]"),
                "{} does not forbid unsafe code",
                target.src_path
            );
        }
    }
}
