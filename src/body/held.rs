//! Bodies that are read whole, and what all of them may take together.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What all of them take now, until nobody needs them any more.
pub(super) static BUDGET: Budget = Budget { taken: AtomicUsize::new(0), most: 64 * 1024 * 1024 };
/// As much of a body has a quarter of the budget to itself: who sends long ones does not keep everybody else out.
const BEGINNING: usize = 16 * 1024;

pub(super) struct Budget {
    taken: AtomicUsize,
    most: usize,
}

/// A body as far as it has come.
pub(super) struct Held {
    bytes: Vec<u8>,
    taken: usize,
    budget: &'static Budget,
}

/// There is no room for more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Budget {
    pub(super) fn hold(&'static self) -> Held {
        Held { bytes: Vec::new(), taken: 0, budget: self }
    }

    fn take(&self, more: usize, most: usize) -> Result<(), Full> {
        let take = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= most);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map(drop).map_err(|_taken| Full)
    }
}

impl Held {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Keeps more of a body of `limit` bytes at most.
    pub(super) fn extend(&mut self, more: &[u8], limit: usize) -> Result<(), Full> {
        let length = self.bytes.len() + more.len();
        if length > self.taken {
            let (limit, most) = match length {
                ..=BEGINNING => (limit.min(BEGINNING), self.budget.most),
                _ => (limit, self.budget.most / 4 * 3),
            };
            let room = length.max((2 * self.taken).min(limit));
            self.budget.take(room - self.taken, most)?;
            self.taken = room;
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LIMIT: usize = 64 * 1024;

    #[test]
    fn long_bodies_leave_room_for_the_beginnings_of_others_and_all_of_it_is_given_back() {
        static ALL: Budget = Budget { taken: AtomicUsize::new(0), most: 4 * LIMIT };
        let held = |bytes: usize| {
            let mut held = ALL.hold();
            held.extend(&vec![b'x'; bytes], LIMIT).map(|()| held)
        };
        let mut long: Vec<_> = (0..3).map(|_| held(LIMIT).unwrap()).collect();
        assert_eq!(held(BEGINNING + 1).err(), Some(Full));
        let short: Vec<_> = (0..4).map(|_| held(BEGINNING).unwrap()).collect();
        assert_eq!(held(1).err(), Some(Full));
        drop(short);
        let kept = Bytes::from_owner(long.remove(0));
        let part = kept.slice(..1);
        drop((kept, long));
        assert_eq!(ALL.taken.load(Ordering::Relaxed), LIMIT, "a part of it is still needed");
        drop(part);
        assert_eq!(ALL.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_body_that_comes_byte_by_byte_takes_no_more_than_twice_its_length_nor_than_its_limit() {
        static ALL: Budget = Budget { taken: AtomicUsize::new(0), most: 4 * LIMIT };
        let mut held = ALL.hold();
        for length in 1..=LIMIT {
            held.extend(b"x", LIMIT).unwrap();
            let taken = ALL.taken.load(Ordering::Relaxed);
            assert_eq!((held.len(), taken), (length, held.bytes.capacity()));
            assert!(taken <= (2 * length).min(LIMIT), "{taken} for {length}");
        }
    }
}
