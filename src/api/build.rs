//! Compiles `proto/ferrio/v1` with protox: no protoc needed.

use std::path::PathBuf;

const FILES: [&str; 9] =
    ["common", "faults", "sessions", "volumes", "queues", "engines", "stats", "scheduling", "admin"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = FILES.map(|name| format!("ferrio/v1/{name}.proto"));
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("ferrio.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
