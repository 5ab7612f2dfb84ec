//! The roles that a process can play.

/// What one process does; the name is the registry's, the metrics' and the command line's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The HTTP gateway.
    Apigateway,
    /// The feed service.
    Feed,
    /// The profile service; calls the feed service.
    Profile,
    /// The topic service.
    Topic,
    /// Every role in one process, on loopback.
    Up,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Apigateway, Self::Feed, Self::Profile, Self::Topic, Self::Up];

    /// The services that register and are called.
    pub const SERVICES: [Self; 3] = [Self::Feed, Self::Profile, Self::Topic];

    /// Returns true if this role calls services of other roles.
    #[must_use]
    pub const fn calls_services(self) -> bool {
        matches!(self, Self::Apigateway | Self::Profile | Self::Up)
    }

    /// Returns the name used everywhere for this role.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apigateway => "apigateway",
            Self::Feed => "feed",
            Self::Profile => "profile",
            Self::Topic => "topic",
            Self::Up => "up",
        }
    }
}
