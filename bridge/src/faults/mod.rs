//! A broker that fails from a seed.
