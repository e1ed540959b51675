//! Any broker through the TCP protocol.
