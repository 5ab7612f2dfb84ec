//! Reflection: a server describes what it serves, so that tools such as grpcurl can call it without its protos.
//!
//! In two versions with the same content: tools before 2023, and the Python library to this day, know v1alpha only.

use tonic::service::Routes;
use tonic_reflection::pb;
use tonic_reflection::server::{Builder, Error};

use super::receive::MAX_STANDARD_MESSAGE;

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
    let v1 = builder().build_v1()?.max_decoding_message_size(MAX_STANDARD_MESSAGE);
    let v1alpha = builder().build_v1alpha()?.max_decoding_message_size(MAX_STANDARD_MESSAGE);
    Ok(routes.add_service(v1).add_service(v1alpha))
}
