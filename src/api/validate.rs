//! The limits of every request, checked at the gateway (so a bad one costs no hop) and again at the
//! service (which other clients call directly).

use crate::api::error::Error;
use crate::api::proto::{feed, profile, topic};

/// Longest content of a feed or topic, bytes of UTF-8.
pub const MAX_CONTENT: usize = 32 * 1024;
/// Longest name, company, title or subject, bytes of UTF-8.
pub const MAX_NAME: usize = 256;
/// Largest page.
pub const MAX_SIZE: i64 = 1000;
/// Page size where the caller names none.
pub const DEFAULT_SIZE: i64 = 20;
/// Most content in one answer, bytes; what is over it waits for the next page.
pub const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// A request message that knows its limits.
pub trait Check {
    /// Returns the first limit that is broken.
    ///
    /// # Errors
    /// [`crate::api::error::Code::BadRequest`] with the field's name.
    fn check(&self) -> Result<(), Error>;
}

fn id(field: &'static str, value: i64) -> Result<(), Error> {
    if value > 0 {
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

/// Lower bound of a page: 0 or an id.
fn bound(field: &'static str, value: i64) -> Result<(), Error> {
    if value >= 0 {
        return Ok(());
    }
    Err(Error::bad(field, "must be an integer from 0 to 9223372036854775807"))
}

impl Check for feed::FeedRecord {
    fn check(&self) -> Result<(), Error> {
        id("id", self.id)?;
        id("user_id", self.user_id)?;
        text("content", &self.content, MAX_CONTENT)
    }
}

impl Check for feed::GetFeedsRequest {
    fn check(&self) -> Result<(), Error> {
        id("user_id", self.user_id)?;
        size(self.size)?;
        bound("before", self.before)
    }
}

impl Check for feed::DeleteFeedRequest {
    fn check(&self) -> Result<(), Error> {
        id("user_id", self.user_id)?;
        id("id", self.id)
    }
}

impl Check for profile::GetProfileRequest {
    fn check(&self) -> Result<(), Error> {
        id("user_id", self.user_id)
    }
}

impl Check for profile::PutProfileRequest {
    fn check(&self) -> Result<(), Error> {
        id("user_id", self.user_id)?;
        text("name", &self.name, MAX_NAME)?;
        text("company", &self.company, MAX_NAME)?;
        text("title", &self.title, MAX_NAME)
    }
}

impl Check for topic::GetTopicRequest {
    fn check(&self) -> Result<(), Error> {
        id("topic_id", self.topic_id)
    }
}

impl Check for topic::PutTopicRequest {
    fn check(&self) -> Result<(), Error> {
        id("topic_id", self.topic_id)?;
        text("subject", &self.subject, MAX_NAME)?;
        text("content", &self.content, MAX_CONTENT)
    }
}

impl Check for topic::ListTopicsRequest {
    fn check(&self) -> Result<(), Error> {
        bound("after", self.after)?;
        size(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_themselves_are_inside() {
        let feed = |content: String| feed::FeedRecord { id: i64::MAX, user_id: 1, content };
        feed("é".repeat(MAX_CONTENT / 2)).check().unwrap();
        let over = feed("é".repeat(MAX_CONTENT / 2) + "x").check().unwrap_err();
        assert_eq!(over.field.as_deref(), Some("content"));
        let page = |size| topic::ListTopicsRequest { after: 0, size };
        page(0).check().unwrap();
        page(MAX_SIZE).check().unwrap();
        assert_eq!(page(MAX_SIZE + 1).check().unwrap_err().field.as_deref(), Some("size"));
        assert_eq!(page(-1).check().unwrap_err().field.as_deref(), Some("size"));
    }
}
