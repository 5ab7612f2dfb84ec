//! Reflection: a server describes what it serves, so that tools such as grpcurl can call it without its protos.
//!
//! In two versions with the same content: tools before 2023, and the Python library to this day, know v1alpha only.

use tonic::service::Routes;
use tonic_reflection::pb;
use tonic_reflection::server::{Builder, Error};

/// Adds reflection to a service's routes; `descriptors` are those of its own rpcs.
///
/// # Errors
/// When the descriptors cannot be read.
pub fn add(routes: Routes, descriptors: &'static [u8]) -> Result<Routes, Error> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    Ok(routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}
