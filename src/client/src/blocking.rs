//! One request at a time: submit it, wait for it, hand its buffer back.

use crate::chain::outcome;
use crate::completion::{Cancelled, Completion, Ticket};
use crate::error::{Error, IoFailure, SubmitError};
use crate::{Buffer, IoVec, Queue, Request, Volume};

impl Queue {
    /// Reads the whole buffer from byte `offset` of the volume.
    ///
    /// # Errors
    /// [`IoFailure`] says why and has the buffer, unless the session ended.
    pub fn read(&mut self, volume: &Volume, offset: u64, buffer: Buffer) -> Result<Buffer, IoFailure> {
        self.execute(Request::read(volume, offset, buffer)).map(buffer_of)
    }

    /// Writes the whole buffer to byte `offset` of the volume.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, volume: &Volume, offset: u64, buffer: Buffer) -> Result<Buffer, IoFailure> {
        self.execute(Request::write(volume, offset, buffer)).map(buffer_of)
    }

    /// Reads from byte `offset` of the volume into the memory of the list.
    ///
    /// # Errors
    /// As [`read`](Self::read), with the list.
    pub fn readv(&mut self, volume: &Volume, offset: u64, list: IoVec) -> Result<IoVec, IoFailure> {
        self.execute(Request::readv(volume, offset, list)).map(iovec_of)
    }

    /// Writes the memory of the list to byte `offset` of the volume.
    ///
    /// # Errors
    /// As [`read`](Self::read), with the list.
    pub fn writev(&mut self, volume: &Volume, offset: u64, list: IoVec) -> Result<IoVec, IoFailure> {
        self.execute(Request::writev(volume, offset, list)).map(iovec_of)
    }

    /// Gives a range of the volume back to the device: [`Request::discard`].
    pub fn discard(&mut self, volume: &Volume, offset: u64, length: u64) -> Result<(), Error> {
        self.execute(Request::discard(volume, offset, length))?;
        Ok(())
    }

    /// Makes a range of the volume read as zeros: [`Request::write_zeroes`].
    pub fn write_zeroes(&mut self, volume: &Volume, offset: u64, length: u64) -> Result<(), Error> {
        self.execute(Request::write_zeroes(volume, offset, length))?;
        Ok(())
    }

    /// Replaces the volume's content by the buffer's second half if it equals the first: [`Request::compare_and_write`].
    ///
    /// # Errors
    /// [`Errno::EILSEQ`](crate::Errno::EILSEQ), with the buffer, if it differs; otherwise as [`read`](Self::read).
    pub fn compare_and_write(
        &mut self,
        volume: &Volume,
        offset: u64,
        buffer: Buffer,
    ) -> Result<Buffer, IoFailure> {
        self.execute(Request::compare_and_write(volume, offset, buffer)).map(buffer_of)
    }

    /// Takes back a request that is in flight on this queue. Its completion comes in any case.
    pub fn cancel(&mut self, ticket: Ticket) -> Result<Cancelled, Error> {
        Cancelled::from_answer(self.execute(Request::cancel(ticket)))
    }

    /// Makes the writes that were completed before survive a power loss.
    pub fn flush(&mut self, volume: &Volume) -> Result<(), Error> {
        self.execute(Request::flush(volume))?;
        Ok(())
    }

    /// Goes to the daemon and back.
    pub fn nop(&mut self) -> Result<(), Error> {
        self.execute(Request::nop())?;
        Ok(())
    }

    /// Submits the request and waits for its completion. Completions of other requests that come meanwhile are kept for
    /// [`poll`](Self::poll) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn execute(&mut self, request: Request) -> Result<Completion, IoFailure> {
        let ticket = self.submit_waiting(request)?;
        self.commit().map_err(IoFailure::bare)?;
        loop {
            match self.wait_for_any().map_err(IoFailure::bare)? {
                Some(completion) if completion.ticket == ticket => return outcome(completion),
                Some(completion) => self.set_aside(completion),
                None => {}
            }
        }
    }

    /// Waits for any completion that comes from the ring; a stray one is kept for the next poll.
    pub(crate) fn wait_for_any(&mut self) -> Result<Option<Completion>, Error> {
        match self.wait_reap(None) {
            Err(Error::Protocol(stray)) => {
                self.set_stray_aside(stray);
                Ok(None)
            }
            found => found,
        }
    }

    fn submit_waiting(&mut self, mut request: Request) -> Result<Ticket, IoFailure> {
        loop {
            request = match self.submit(request) {
                Ok(ticket) => return Ok(ticket),
                Err(SubmitError::Refused(refused)) => {
                    return Err(IoFailure::refused(refused.request, refused.error));
                }
                Err(SubmitError::Full(request)) => request,
            };
            if let Err(error) = self.make_room() {
                return Err(IoFailure::refused(request, error));
            }
        }
    }

    /// Waits until a completion, kept for later, has made the SQ ring or the table emptier.
    pub(crate) fn make_room(&mut self) -> Result<(), Error> {
        if self.is_clogged() {
            let entries = u32::try_from(self.in_flight_max()).unwrap_or(u32::MAX);
            return Err(Error::Unpolled { queue: self.index(), entries });
        }
        self.commit()?;
        match self.wait_for_any()? {
            Some(completion) => self.set_aside(completion),
            // All is answered, and the daemon is about to free the SQ slots.
            None => std::thread::yield_now(),
        }
        Ok(())
    }
}

/// A read or write that succeeded has its buffer.
pub(crate) fn buffer_of(completion: Completion) -> Buffer {
    completion.buffer.expect("a transfer that was answered hands its buffer back")
}

/// The same of a readv or writev.
pub(crate) fn iovec_of(completion: Completion) -> IoVec {
    completion.iovec.expect("a transfer that was answered hands its list back")
}
