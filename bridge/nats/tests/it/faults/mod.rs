//! What NATS does to relay when servers die, leaders change, stores are restored and readers hang: on real servers.

mod doubt;
mod filling;
mod forged;
mod hanging;
mod letters;
mod limits;
mod listening;
mod losing_nodes;
mod making;
mod restoring;
mod sharing;
mod stale;
mod strays;
mod submitting;
mod support;
