//! The generated messages and services, one module a package.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// Package `feed`.
pub mod feed {
    tonic::include_proto!("feed");

    /// The encoded descriptors of the package, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/feed.bin"));
}
/// Package `profile`.
pub mod profile {
    tonic::include_proto!("profile");

    /// The encoded descriptors of the package, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/profile.bin"));
}
/// Package `topic`.
pub mod topic {
    tonic::include_proto!("topic");

    /// The encoded descriptors of the package, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/topic.bin"));
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::{feed, profile, topic};

    /// The bytes of each message, field by field: tag (number and type), then value. Clients of the original system
    /// depend on every number.
    #[test]
    fn fields_keep_the_numbers_of_the_original() {
        let record = feed::FeedRecord { id: 1, user_id: 2, content: "c".to_owned() };
        assert_eq!(record.encode_to_vec(), [0x08, 1, 0x10, 2, 0x1a, 1, b'c']);
        let asked = feed::GetFeedsRequest { user_id: 1, size: 2, before: 3 };
        assert_eq!(asked.encode_to_vec(), [0x08, 1, 0x10, 2, 0x18, 3]);
        let page = feed::GetFeedsResponse { feeds: vec![record], shortened: false };
        assert_eq!(page.encode_to_vec(), [0x0a, 7, 0x08, 1, 0x10, 2, 0x1a, 1, b'c']);
        assert!(feed::OkResponse {}.encode_to_vec().is_empty());

        assert_eq!(profile::GetProfileRequest { user_id: 1 }.encode_to_vec(), [0x08, 1]);
        let found = profile::GetProfileResponse {
            user_id: 1,
            name: "n".to_owned(),
            company: "c".to_owned(),
            title: "t".to_owned(),
            feeds: vec![vec![7].into()],
        };
        let bytes = [0x08, 1, 0x12, 1, b'n', 0x1a, 1, b'c', 0x22, 1, b't', 0x2a, 1, 7];
        assert_eq!(found.encode_to_vec(), bytes);

        assert_eq!(topic::GetTopicRequest { topic_id: 1 }.encode_to_vec(), [0x08, 1]);
        let found = topic::GetTopicResponse { topic_id: 1, subject: "s".to_owned(), content: "c".to_owned() };
        assert_eq!(found.encode_to_vec(), [0x08, 1, 0x12, 1, b's', 0x1a, 1, b'c']);
    }
}
