//! The roles that one process can run at the same time, and who calls whom. `up` is not among them: it runs them all.

use crate::config::Role;

/// A service that a process can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// feed.Feed.
    Feed,
    /// profile.Profile.
    Profile,
    /// topic.Topic.
    Topic,
}

impl ServiceKind {
    /// Every service.
    pub const ALL: [Self; 3] = [Self::Feed, Self::Profile, Self::Topic];

    /// Returns the name of the service in the registry.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Feed => Role::Feed.name(),
            Self::Profile => Role::Profile.name(),
            Self::Topic => Role::Topic.name(),
        }
    }
}

/// Something in a process that serves requests and drains by itself. A process may run several of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// The HTTP gateway.
    Gateway,
    /// An instance of a service.
    Service(ServiceKind),
}

impl Member {
    /// Every kind of member.
    pub const ALL: [Self; 4] = [
        Self::Gateway,
        Self::Service(ServiceKind::Feed),
        Self::Service(ServiceKind::Profile),
        Self::Service(ServiceKind::Topic),
    ];

    /// Returns the services that a member calls. Clients and the order of drains follow from this table.
    #[must_use]
    pub const fn calls(self) -> &'static [ServiceKind] {
        match self {
            Self::Gateway => &[ServiceKind::Feed, ServiceKind::Profile, ServiceKind::Topic],
            Self::Service(ServiceKind::Profile) => &[ServiceKind::Feed],
            Self::Service(ServiceKind::Feed | ServiceKind::Topic) => &[],
        }
    }

    /// Returns the members that call this one.
    pub fn callers(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |caller| match self {
            Self::Gateway => false,
            Self::Service(kind) => caller.calls().contains(&kind),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_those_that_call() {
        let callers = |kind| Member::Service(kind).callers().collect::<Vec<_>>();
        assert_eq!(callers(ServiceKind::Feed), [Member::Gateway, Member::Service(ServiceKind::Profile)]);
        assert_eq!(callers(ServiceKind::Profile), [Member::Gateway]);
        assert_eq!(callers(ServiceKind::Topic), [Member::Gateway]);
        assert_eq!(Member::Gateway.callers().count(), 0);
    }

    #[test]
    fn no_member_calls_itself_even_through_others() {
        for member in Member::ALL {
            let mut reached: Vec<_> = member.calls().to_vec();
            let mut next = 0;
            while let Some(kind) = reached.get(next).copied() {
                assert_ne!(Member::Service(kind), member, "a drain would wait for itself");
                for called in Member::Service(kind).calls() {
                    if !reached.contains(called) {
                        reached.push(*called);
                    }
                }
                next += 1;
            }
        }
    }
}
