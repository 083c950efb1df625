//! Random requests.

use std::{ops::Range, time::Duration};

use ferrio_client::{Buffer, IoVec, Request};

use super::{Asked, Mix};
use crate::history::{BLOCK, Effect, WORDS, word};

/// A request that is made and not submitted.
pub(super) struct Draft {
    pub request: Request,
    pub asked: Asked,
    pub change: Change,
}

/// What the history is to know of it.
pub(super) struct Change {
    pub effect: Effect,
    pub barrier: bool,
    pub first: u64,
    pub blocks: u64,
}

/// Words of a block after this.
fn content(stamp: u32, block: u64) -> Vec<u64> {
    (0..WORDS).map(|index| word(stamp, block, index)).collect()
}

fn fill(bytes: &mut [u8], words: &[u64]) {
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

impl Mix<'_> {
    pub(super) fn draft(&mut self, queue: usize) -> Result<Draft, String> {
        let mut draft = self.draft_plain(queue)?;
        // A nop has no volume to be ordered on; a cancel acts at once.
        if draft.asked.cancels.is_none() && draft.asked.what != "nop" && self.rng.u32(..16) == 0 {
            draft.change.barrier = true;
            draft.request = draft.request.barrier(true);
        }
        if draft.asked.cancels.is_none() && self.rng.u32(..12) == 0 {
            draft.asked.timeout = true;
            draft.request = draft.request.timeout(Duration::from_micros(self.rng.u64(1..2000)));
        }
        draft.request = draft.request.prio(self.rng.u32(..4) == 0);
        Ok(draft)
    }

    fn draft_plain(&mut self, queue: usize) -> Result<Draft, String> {
        let blocks = self.rng.u64(1..=self.shape.blocks_max);
        let first = self.rng.u64(..=self.shape.blocks - blocks);
        let (offset, length) = (first * BLOCK as u64, blocks * BLOCK as u64);
        let volume = self.volume.clone();
        let (vectored, fua) = (self.rng.u32(..3) == 0, self.rng.u32(..10) == 0);
        let (what, request, effect) = match self.rng.u32(..100) {
            0..=29 => return self.draft_read(first, blocks, vectored),
            30..=64 => return self.draft_write(first, blocks, vectored, fua),
            65..=68 => ("discard", Request::discard(&volume, offset, length), Effect::Discard),
            69..=75 => {
                (first..first + blocks).for_each(|block| {
                    self.guesses.insert(block, vec![0; WORDS]);
                });
                ("write-zeroes", Request::write_zeroes(&volume, offset, length).fua(fua), Effect::Zero)
            }
            76..=85 => return self.draft_swap(first, fua),
            86..=93 if !self.recent[queue].is_empty() => {
                return Ok(self.draft_cancel(queue));
            }
            94..=96 => ("nop", Request::nop(), Effect::None),
            _ => ("flush", Request::flush(&volume), Effect::None),
        };
        let change = Change { effect, barrier: false, first, blocks };
        Ok(Draft { request, asked: Asked::plain(what), change })
    }

    /// One of a stream: requests that each go on where the one before them ends, which the engine may join.
    pub(super) fn draft_of_stream(&mut self, block: u64, write: bool) -> Result<Draft, String> {
        if write { self.draft_write(block, 1, false, false) } else { self.draft_read(block, 1, false) }
    }

    fn draft_read(&mut self, first: u64, blocks: u64, vectored: bool) -> Result<Draft, String> {
        let (volume, offset) = (self.volume.clone(), first * BLOCK as u64);
        let mut buffer = self.memory(blocks)?;
        buffer.fill(0xee);
        let change = Change { effect: Effect::Read(Vec::new()), barrier: false, first, blocks };
        if !vectored {
            let request = Request::read(&volume, offset, buffer);
            return Ok(Draft { request, asked: Asked::plain("read"), change });
        }
        let (list, places) = self.list(buffer)?;
        let asked = Asked { places, ..Asked::plain("readv") };
        Ok(Draft { request: Request::readv(&volume, offset, list), asked, change })
    }

    fn draft_write(&mut self, first: u64, blocks: u64, vectored: bool, fua: bool) -> Result<Draft, String> {
        let (volume, offset) = (self.volume.clone(), first * BLOCK as u64);
        let (mut buffer, stamp) = (self.memory(blocks)?, self.stamp());
        for (block, bytes) in (first..).zip(buffer.chunks_exact_mut(BLOCK)) {
            let words = content(stamp, block);
            fill(bytes, &words);
            self.guesses.insert(block, words);
        }
        let change = Change { effect: Effect::Write(stamp), barrier: false, first, blocks };
        if !vectored {
            let request = Request::write(&volume, offset, buffer).fua(fua);
            return Ok(Draft { request, asked: Asked::plain("write"), change });
        }
        let data = buffer.to_vec();
        let (mut list, places) = self.list(buffer)?;
        if let Some(buffer) = list.buffer_mut(0) {
            let mut rest = &data[..];
            for place in places {
                let (piece, after) = rest.split_at(place.len());
                buffer[place].copy_from_slice(piece);
                rest = after;
            }
        }
        let request = Request::writev(&volume, offset, list).fua(fua);
        Ok(Draft { request, asked: Asked::plain("writev"), change })
    }

    /// Expects what the last change asked for, more often than not; that may not be there, or not yet.
    fn draft_swap(&mut self, block: u64, fua: bool) -> Result<Draft, String> {
        let stamp = self.stamp();
        let there = &self.history.initial[block as usize * WORDS..][..WORDS];
        let expected = match self.guesses.get(&block) {
            Some(guess) if self.rng.u32(..4) > 0 => guess.clone(),
            _ => there.to_vec(),
        };
        let mut halves = self.memory(2)?;
        let new = content(stamp, block);
        fill(&mut halves[..BLOCK], &expected);
        fill(&mut halves[BLOCK..], &new);
        self.guesses.insert(block, new);
        let request = Request::compare_and_write(&self.volume, block * BLOCK as u64, halves).fua(fua);
        let effect = Effect::Swap { expected, stamp };
        let change = Change { effect, barrier: false, first: block, blocks: 1 };
        Ok(Draft { request, asked: Asked::plain("compare-and-write"), change })
    }

    /// Takes one of the last requests of the queue back, whether it was answered or not.
    fn draft_cancel(&mut self, queue: usize) -> Draft {
        let recent = &self.recent[queue];
        let target = recent[recent.len() - 1 - self.rng.usize(..recent.len().min(8))];
        let change = Change { effect: Effect::None, barrier: false, first: 0, blocks: 1 };
        // The ticket of what is in no ring yet is not known: a member of the chain that this cancel belongs to.
        match self.tickets.get(&target) {
            Some(ticket) => {
                let asked = Asked { cancels: Some(target), ..Asked::plain("cancel") };
                Draft { request: Request::cancel(*ticket), asked, change }
            }
            None => Draft { request: Request::nop(), asked: Asked::plain("nop"), change },
        }
    }

    fn stamp(&mut self) -> u32 {
        self.last_stamp += 1;
        self.last_stamp
    }

    /// A buffer of the arena, or of the region; waits until there is one.
    fn memory(&mut self, blocks: u64) -> Result<Buffer, String> {
        let (bytes, outside) = (blocks as usize * BLOCK, self.rng.bool());
        loop {
            if outside && let Ok(buffer) = self.region.alloc(bytes) {
                return Ok(buffer);
            }
            match self.session.alloc(bytes) {
                Ok(buffer) => return Ok(buffer),
                Err(error) => self.free_memory(&error.to_string())?,
            }
        }
    }

    fn free_memory(&mut self, why: &str) -> Result<(), String> {
        let queue = (0..self.queues.len()).max_by_key(|queue| self.queues[*queue].in_flight());
        match queue.filter(|queue| self.queues[*queue].in_flight() > 0) {
            Some(queue) => self.wait(queue),
            None => Err(format!("nothing is in flight that could be waited for: {why}")),
        }
    }

    /// All of the buffer, in entries of different lengths, the last of them first. Also where each entry lies.
    fn list(&mut self, buffer: Buffer) -> Result<(IoVec, Vec<Range<usize>>), String> {
        let mut list = loop {
            match self.session.iovec() {
                Ok(list) => break list,
                Err(error) => self.free_memory(&error.to_string())?,
            }
        };
        let grain = self.volume.block_bytes().max(self.volume.memory_align_bytes()) as usize;
        let (mut end, mut places) = (buffer.len(), Vec::new());
        while end > 0 {
            let left = end / grain;
            // The last entry that may be takes all that is left.
            let grains = if places.len() == 255 { left } else { self.rng.usize(1..=left.min(8)) };
            places.push(end - grains * grain..end);
            end -= grains * grain;
        }
        list.push_range(buffer, places[0].clone());
        places[1..].iter().for_each(|place| list.again(0, place.clone()));
        Ok((list, places))
    }
}
