//! The names of requests, by which a client and an operator speak of one.

use uuid::Uuid;

/// 32 hexadecimal digits, random: they tell nothing of other requests. The generator is the thread's own and seeded by the
/// system, so this is no system call.
pub(super) fn mint() -> String {
    Uuid::new_v4().simple().to_string()
}
