//! Whether an instance can be called, as far as its connections tell.

/// The state of one connection, or of all connections to one instance together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ConnectionState {
    /// The first connection is being opened, or another one at once after a loss: calls may wait for it.
    Connecting = 0,
    /// Connected.
    Up = 1,
    /// The last attempt to connect failed, or the connection broke.
    Down = 2,
    /// Connected, but its health says that it does not serve.
    NotServing = 3,
    /// Connected, but another service answers at this address.
    WrongService = 4,
    /// Connected, but the peer does not answer a health check: it may be frozen, or the network between.
    Unresponsive = 5,
}

impl ConnectionState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Connecting, Self::Up, Self::Down, Self::NotServing, Self::WrongService, Self::Unresponsive];

    /// Returns the state with a number (`state as u8`); `Down` if there is none.
    #[must_use]
    pub const fn of(number: u8) -> Self {
        match number {
            0 => Self::Connecting,
            1 => Self::Up,
            3 => Self::NotServing,
            4 => Self::WrongService,
            5 => Self::Unresponsive,
            _ => Self::Down,
        }
    }

    /// Returns the word for it in `/status` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down => "down",
            Self::NotServing => "not_serving",
            Self::WrongService => "wrong_service",
            Self::Unresponsive => "unresponsive",
        }
    }

    /// Returns true if there is a connection to the right service, so that a call may be answered.
    #[must_use]
    pub const fn is_connected(self) -> bool {
        matches!(self, Self::Up | Self::NotServing | Self::Unresponsive)
    }

    /// Returns the one of two states that is worse for a caller: for what several callers see of one instance.
    #[must_use]
    pub const fn worse(self, other: Self) -> Self {
        const fn badness(state: ConnectionState) -> u8 {
            match state {
                ConnectionState::Up => 0,
                ConnectionState::Connecting => 1,
                ConnectionState::NotServing => 2,
                ConnectionState::Unresponsive => 3,
                ConnectionState::Down => 4,
                ConnectionState::WrongService => 5,
            }
        }
        if badness(other) > badness(self) { other } else { self }
    }

    /// Returns the state of an instance by the states of its connections: what the peer has said (up, not
    /// serving, another service) counts more than a connection that is missing or silent.
    pub fn combined(states: impl Iterator<Item = Self>) -> Self {
        const fn weight(state: ConnectionState) -> u8 {
            match state {
                ConnectionState::Down => 0,
                ConnectionState::Connecting => 1,
                ConnectionState::Unresponsive => 2,
                ConnectionState::Up => 3,
                ConnectionState::NotServing => 4,
                ConnectionState::WrongService => 5,
            }
        }
        states.max_by_key(|state| weight(*state)).unwrap_or(Self::Down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_number() {
        for state in ConnectionState::ALL {
            assert_eq!(ConnectionState::of(state as u8), state);
        }
    }

    #[test]
    fn an_instance_with_one_connection_that_responds_is_up() {
        use ConnectionState::{Down, NotServing, Unresponsive, Up};
        for (connections, want) in [
            ([Unresponsive, Up], Up),
            ([Unresponsive, Down], Unresponsive),
            ([Unresponsive, NotServing], NotServing),
        ] {
            assert_eq!(ConnectionState::combined(connections.into_iter()), want, "{connections:?}");
        }
        // of several callers the one that sees it worse
        assert_eq!((Up.worse(Unresponsive), Unresponsive.worse(Down)), (Unresponsive, Down));
    }
}
