//! Decides whose job is next: a queue as one process sees it, its lanes and their turns.

pub(crate) mod lanes;
pub(crate) mod lines;
pub(crate) mod lost_lanes;
pub(crate) mod order;
pub(crate) mod places;
pub(crate) mod queue_state;
pub(crate) mod ready;
pub(crate) mod rounds;
pub(crate) mod turns;
