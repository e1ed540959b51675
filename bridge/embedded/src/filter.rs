//! Tells, without reading the index of ids, that an id is certainly not in it.
//!
//! A Bloom filter of fixed size: it never says no for an id that is in the index; how often it says *perhaps* for one that
//! is not grows with what was indexed, and then the index is read, as it would be without the filter. It counts only once
//! a scan of the index has filled in what was there before it. Ids that were removed stay in it until the store is
//! opened again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rusqlite::{Connection, params};

use super::sql::unavailable;
use relay_bridge::contract::JobId;
use relay_bridge::error::BrokerError;

/// 2 MiB: with a million ids in it, one look-up in 400 is in vain; with four million, one in 6.
const BITS: u64 = 16 * 1024 * 1024;
/// Bits set for each id.
const HASHES: u64 = 4;

pub(super) struct Filter {
    words: Box<[AtomicU64]>,
    /// Whether everything that is in the index is in here.
    complete: AtomicBool,
}

impl Default for Filter {
    fn default() -> Self {
        Self { words: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect(), complete: AtomicBool::new(false) }
    }
}

impl Filter {
    /// Notes an id that is being indexed.
    pub(super) fn add(&self, id: JobId) {
        for (word, bit) in places(id) {
            self.words[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether the index must be read for this id.
    pub(super) fn may_contain(&self, id: JobId) -> bool {
        !self.complete.load(Ordering::Acquire)
            || places(id).all(|(word, bit)| self.words[word].load(Ordering::Relaxed) & bit != 0)
    }

    /// Fills in up to `limit` ids of the index that are greater than `after`, and answers the last of them; `None` once
    /// there is no more. The filter must have been in use before the first statement of the first call, so that an id
    /// that is indexed meanwhile is added when it is indexed.
    pub(super) fn scan(&self, conn: &Connection, after: JobId, limit: u32) -> Result<Option<JobId>, BrokerError> {
        let sql = |e| unavailable(e, "scan ids");
        let mut query = conn.prepare_cached("SELECT id FROM ids WHERE id > ?1 ORDER BY id LIMIT ?2").map_err(sql)?;
        let mut rows = query.query(params![after.as_bytes(), limit]).map_err(sql)?;
        let (mut last, mut found) = (after, 0);
        while let Some(row) = rows.next().map_err(sql)? {
            last = JobId::from_bytes(row.get(0).map_err(sql)?);
            self.add(last);
            found += 1;
        }
        if found < limit {
            self.complete.store(true, Ordering::Release);
            return Ok(None);
        }
        Ok(Some(last))
    }
}

/// The last eight bytes of an id are random in every version that relay makes, but for two fixed bits.
fn places(id: JobId) -> impl Iterator<Item = (usize, u64)> {
    let [.., a, b, c, d, e, f, g, h] = *id.as_bytes();
    let random = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    // Double hashing (Kirsch and Mitzenmacher, 2006); the step is odd, so that it meets every bit.
    let (start, step) = (random & u64::from(u32::MAX), random >> 31 | 1);
    (0..HASHES).map(move |n| {
        let bit = start.wrapping_add(n.wrapping_mul(step)) % BITS;
        (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
    })
}
