//! gRPC API of ferriod, generated from `proto/ferrio/v1`. Meaning, units and ranges of every field stand there.

#![forbid(unsafe_code)]

/// Version 1 of the API.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("ferrio.v1");

    /// Encoded `FileDescriptorSet` of the API, for the reflection service.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ferrio.v1.bin"));
}
