//! The frames of relay's TCP protocol.
