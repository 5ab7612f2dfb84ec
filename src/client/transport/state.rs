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
}

impl ConnectionState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Connecting, Self::Up, Self::Down, Self::NotServing, Self::WrongService];

    /// Returns the state with a number (`state as u8`); `Down` if there is none.
    #[must_use]
    pub const fn of(number: u8) -> Self {
        match number {
            0 => Self::Connecting,
            1 => Self::Up,
            3 => Self::NotServing,
            4 => Self::WrongService,
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
        }
    }

    /// Returns the one of two states that is worse for a caller: for what several callers see of one instance.
    #[must_use]
    pub const fn worse(self, other: Self) -> Self {
        const fn badness(state: ConnectionState) -> u8 {
            match state {
                ConnectionState::Up => 0,
                ConnectionState::Connecting => 1,
                ConnectionState::NotServing => 2,
                ConnectionState::Down => 3,
                ConnectionState::WrongService => 4,
            }
        }
        if badness(other) > badness(self) { other } else { self }
    }

    /// Returns the state of an instance by the states of its connections: what the peer has said (up, not
    /// serving, another service) counts more than a connection that is missing.
    pub fn combined(states: impl Iterator<Item = Self>) -> Self {
        const fn weight(state: ConnectionState) -> u8 {
            match state {
                ConnectionState::Down => 0,
                ConnectionState::Connecting => 1,
                ConnectionState::Up => 2,
                ConnectionState::NotServing => 3,
                ConnectionState::WrongService => 4,
            }
        }
        states.max_by_key(|state| weight(*state)).unwrap_or(Self::Down)
    }
}
