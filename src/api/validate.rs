//! The limits of every request. The client checks them before it calls, so that an invalid request costs no hop;
//! the services check them again, because other clients call them directly.

use crate::api::error::Error;
use crate::api::proto::{feed, profile, topic};

/// Smallest id.
pub const MIN_ID: i64 = 1;
/// Longest content of a feed or topic, bytes of UTF-8.
pub const MAX_CONTENT: usize = 32 * 1024;
/// Longest name, company, title or subject, bytes of UTF-8.
pub const MAX_NAME: usize = 256;
/// Largest page.
pub const MAX_SIZE: i64 = 1000;
/// Size of a page if the caller asks for none.
pub const DEFAULT_SIZE: i64 = 20;
/// Feeds of a profile.
pub const PROFILE_FEEDS: i64 = 20;
/// Most content in one answer, bytes; the rest is left to the next page.
pub const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// A request message that can be validated.
pub trait Validate {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// [`crate::api::error::Code::BadRequest`] with the name of the first field that breaks its limits.
    fn validate(&self) -> Result<(), Error>;
}

fn id(field: &'static str, value: i64) -> Result<(), Error> {
    if value >= MIN_ID {
        return Ok(());
    }
    Err(Error::bad(field, "must be an integer from 1 to 9223372036854775807"))
}

fn size(value: i64) -> Result<(), Error> {
    if (0..=MAX_SIZE).contains(&value) {
        return Ok(());
    }
    Err(Error::bad("size", format!("must be an integer from 0 to {MAX_SIZE}")))
}

fn text(field: &'static str, value: &str, max: usize) -> Result<(), Error> {
    if value.len() > max {
        return Err(Error::bad(field, format!("must be at most {max} bytes of UTF-8, is {}", value.len())));
    }
    if value.contains('\0') {
        return Err(Error::bad(field, "must not contain U+0000"));
    }
    Ok(())
}

/// The bound of a page: an id, or 0 for none.
fn bound(field: &'static str, value: i64) -> Result<(), Error> {
    if value >= 0 {
        return Ok(());
    }
    Err(Error::bad(field, "must be an integer from 0 to 9223372036854775807"))
}

impl Validate for feed::FeedRecord {
    fn validate(&self) -> Result<(), Error> {
        id("id", self.id)?;
        id("user_id", self.user_id)?;
        text("content", &self.content, MAX_CONTENT)
    }
}

impl Validate for feed::GetFeedsRequest {
    fn validate(&self) -> Result<(), Error> {
        id("user_id", self.user_id)?;
        size(self.size)?;
        bound("before", self.before)
    }
}

impl Validate for feed::DeleteFeedRequest {
    fn validate(&self) -> Result<(), Error> {
        id("user_id", self.user_id)?;
        id("id", self.id)
    }
}

impl Validate for profile::GetProfileRequest {
    fn validate(&self) -> Result<(), Error> {
        id("user_id", self.user_id)
    }
}

impl Validate for profile::PutProfileRequest {
    fn validate(&self) -> Result<(), Error> {
        id("user_id", self.user_id)?;
        text("name", &self.name, MAX_NAME)?;
        text("company", &self.company, MAX_NAME)?;
        text("title", &self.title, MAX_NAME)
    }
}

impl Validate for topic::GetTopicRequest {
    fn validate(&self) -> Result<(), Error> {
        id("topic_id", self.topic_id)
    }
}

impl Validate for topic::PutTopicRequest {
    fn validate(&self) -> Result<(), Error> {
        id("topic_id", self.topic_id)?;
        text("subject", &self.subject, MAX_NAME)?;
        text("content", &self.content, MAX_CONTENT)
    }
}

impl Validate for topic::ListTopicsRequest {
    fn validate(&self) -> Result<(), Error> {
        bound("after", self.after)?;
        size(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_its_limit_is_valid() {
        let feed = |content: String| feed::FeedRecord { id: i64::MAX, user_id: 1, content };
        feed("é".repeat(MAX_CONTENT / 2)).validate().unwrap();
        let over = feed("é".repeat(MAX_CONTENT / 2) + "x").validate().unwrap_err();
        assert_eq!(over.field.as_deref(), Some("content"));
        let page = |size| topic::ListTopicsRequest { after: 0, size };
        page(0).validate().unwrap();
        page(MAX_SIZE).validate().unwrap();
        assert_eq!(page(MAX_SIZE + 1).validate().unwrap_err().field.as_deref(), Some("size"));
        assert_eq!(page(-1).validate().unwrap_err().field.as_deref(), Some("size"));
    }
}
