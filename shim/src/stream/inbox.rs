//! Bytes that have arrived on a connection and are not used yet, in a buffer that never grows.
//!
//! Must not know: what they mean.

/// See the module.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// Room for `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { bytes: vec![0; size].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The bytes that wait.
    pub fn waiting(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Forgets the first `count` bytes that wait.
    pub fn take(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Where more can be put. What waits is moved to the front for it only when the room behind it is used up.
    pub fn room(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// The first `count` bytes of the room have been filled.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Copies as much of `bytes` as there is room for; gives how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.filled(count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_room_comes_back() {
        let mut inbox = Inbox::new(8);
        assert_eq!(inbox.put(b"abcdef"), 6);
        inbox.take(4);
        assert_eq!(inbox.put(b"ghij"), 2, "behind what waits there are two bytes");
        assert_eq!(inbox.put(b"ij"), 2, "the taken ones are room again");
        assert_eq!(inbox.waiting(), b"efghij");
        inbox.take(6);
        assert_eq!((inbox.waiting().len(), inbox.room().len()), (0, 8));
    }

    #[test]
    fn a_full_one_has_no_room() {
        let mut inbox = Inbox::new(2);
        assert_eq!(inbox.put(b"abc"), 2);
        assert!(inbox.room().is_empty());
        assert_eq!(inbox.put(b"c"), 0);
    }
}
