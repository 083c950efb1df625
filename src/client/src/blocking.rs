//! One request at a time: submit it, wait for it, hand its buffer back.

use crate::completion::{Completion, Ticket};
use crate::error::{Error, IoFailure, SubmitError};
use crate::{Buffer, Queue, Request, Volume};

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
        let failed = |error| IoFailure { error, buffer: None };
        self.commit().map_err(failed)?;
        loop {
            if let Some(completion) = self.wait_for(ticket).map_err(failed)? {
                let Completion { result: Err(error), buffer, .. } = completion else { return Ok(completion) };
                return Err(IoFailure { error: error.into(), buffer });
            }
        }
    }

    /// Waits for any completion and keeps it for later, unless it is the one looked for.
    fn wait_for(&mut self, ticket: Ticket) -> Result<Option<Completion>, Error> {
        match self.wait_reap(None) {
            Ok(Some(completion)) if completion.ticket == ticket => return Ok(Some(completion)),
            Ok(Some(completion)) => self.set_aside(completion),
            Ok(None) => {}
            Err(Error::Protocol(stray)) => self.set_stray_aside(stray),
            Err(error) => return Err(error),
        }
        Ok(None)
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
    fn make_room(&mut self) -> Result<(), Error> {
        if self.is_clogged() {
            let entries = u32::try_from(self.in_flight_max()).unwrap_or(u32::MAX);
            return Err(Error::Unpolled { queue: self.index(), entries });
        }
        self.commit()?;
        match self.wait_reap(None) {
            Ok(Some(completion)) => self.set_aside(completion),
            // All is answered, and the daemon is about to free the SQ slots.
            Ok(None) => std::thread::yield_now(),
            Err(Error::Protocol(stray)) => self.set_stray_aside(stray),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// A read or write that succeeded has its buffer.
pub(crate) fn buffer_of(completion: Completion) -> Buffer {
    completion.buffer.expect("a transfer that was answered hands its buffer back")
}
