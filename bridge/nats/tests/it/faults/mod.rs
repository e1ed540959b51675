//! Faults of NATS, and how relay bears them: servers die, leaders change, stores are restored, readers hang. On real
//! servers.

mod changed;
mod doubt;
mod filling;
mod forged;
mod gone;
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
