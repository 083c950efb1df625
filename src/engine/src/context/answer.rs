//! What comes back: result, memory, and who is told.

use std::{fmt, io};

use ferrio_shm::{
    abi::{Opcode, errno},
    entry::Sqe,
};

use super::event::{Held, IoBuffer, IoList};

/// Gets the completion of an event, on a callback worker.
///
/// Closures that take an [`IoCompletion`] are callbacks, and `Box<dyn FnOnce(IoCompletion) + Send>` is one type for many of
/// them. `()` is nobody: the completion is dropped.
pub trait IoCallback: Send + 'static {
    /// Called once. It may submit, and the place of its event is free already. A worker that it keeps busy is missing to
    /// others. A panic is logged, and ends nothing else.
    fn call(self, completion: IoCompletion);
}

impl<F: FnOnce(IoCompletion) + Send + 'static> IoCallback for F {
    fn call(self, completion: IoCompletion) {
        self(completion);
    }
}

impl IoCallback for () {
    fn call(self, _: IoCompletion) {}
}

/// The answer to an event.
#[derive(Debug)]
pub struct IoCompletion {
    /// Bytes moved, all that were asked for, 0 for operations that move none; or why not.
    pub result: Result<u32, IoError>,
    /// The buffer of the event, whatever the result: its content is undefined after a read that failed. `None` if it had
    /// none, or if the kernel may still use it: see [`Cause::Unanswered`].
    pub buffer: Option<IoBuffer>,
    /// The list of the event, as the buffer.
    pub list: Option<IoList>,
}

impl IoCompletion {
    /// Result and buffer of an event that has one.
    ///
    /// # Errors
    /// The event failed.
    pub fn into_buffer(self) -> Result<Option<IoBuffer>, IoError> {
        self.result.map(|_| self.buffer)
    }
}

/// What an event asked for, kept to say what failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    op: u8,
    volume: u16,
    offset: u64,
    length: u64,
}

impl Asked {
    pub fn of(sqe: &Sqe) -> Self {
        Self { op: sqe.op, volume: sqe.volume, offset: sqe.offset, length: sqe.length }
    }

    /// The completion for what a CQE says.
    pub fn answered(self, result: i32, held: Held) -> IoCompletion {
        let result = u32::try_from(result).map_err(|_| self.failed(Cause::Errno(result.saturating_neg())));
        let (buffer, list) = held.into_parts();
        IoCompletion { result, buffer, list }
    }

    pub fn failed(self, cause: Cause) -> IoError {
        let Self { op, volume, offset, length } = self;
        IoError { op: Opcode::try_from(op).unwrap_or(Opcode::Nop), volume, offset, length, cause }
    }
}

/// Why an event failed, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError {
    /// Operation.
    pub op: Opcode,
    /// Which of the context's volumes, in the order in which they were given to its builder.
    pub volume: u16,
    /// Where on the volume. Bytes.
    pub offset: u64,
    /// How much. Bytes.
    pub length: u64,
    /// Why.
    pub cause: Cause,
}

/// Why an event failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Error number of Linux, positive.
    Errno(i32),
    /// The context was shut down before the answer came: whether the event took effect is not known.
    Unanswered,
}

impl IoError {
    /// Error number of Linux, positive: `EOWNERDEAD` for [`Cause::Unanswered`].
    pub fn errno(&self) -> i32 {
        match self.cause {
            Cause::Errno(errno) => errno,
            Cause::Unanswered => errno::EOWNERDEAD,
        }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, volume, offset, length, cause } = self;
        match op {
            Opcode::Flush => write!(f, "flush of volume {volume}: ")?,
            Opcode::Cancel => f.write_str("cancel: ")?,
            _ => write!(f, "{} of {length} bytes at byte {offset} of volume {volume}: ", name(*op))?,
        }
        match cause {
            Cause::Errno(errno) => {
                write!(f, "{}{}", io::Error::from_raw_os_error(*errno), hint(*errno))
            }
            Cause::Unanswered => f.write_str(
                "the context was shut down before the answer came; whether it took effect is not known",
            ),
        }
    }
}

impl std::error::Error for IoError {}

impl From<IoError> for io::Error {
    fn from(error: IoError) -> Self {
        Self::new(Self::from_raw_os_error(error.errno()).kind(), error)
    }
}

fn name(op: Opcode) -> &'static str {
    match op {
        Opcode::Nop => "nop",
        Opcode::Read => "read",
        Opcode::Write => "write",
        Opcode::Readv => "readv",
        Opcode::Writev => "writev",
        Opcode::Flush => "flush",
        Opcode::Discard => "discard",
        Opcode::WriteZeroes => "write-zeroes",
        Opcode::CompareAndWrite => "compare-and-write",
        Opcode::Cancel => "cancel",
    }
}

/// What the engine means by it.
fn hint(errno: i32) -> &'static str {
    match errno {
        errno::EINVAL => "; offset and length must be multiples of the volume's block, and the length not 0",
        errno::ERANGE => "; it reaches beyond the end of the volume",
        errno::EMSGSIZE => "; it is longer than one event may be",
        errno::EROFS => "; the volume is open for reading alone",
        errno::EOPNOTSUPP => "; the volume or the context cannot do this",
        errno::ENODEV => "; the volume was removed",
        errno::EALREADY => "; the kernel has the event: its own answer comes",
        errno::ENOENT => "; the event was answered",
        errno::EILSEQ => "; the volume holds something else than was compared",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_failed_and_where() {
        let sqe = Sqe { op: Opcode::Read as u8, volume: 1, offset: 8192, length: 4096, ..Sqe::default() };
        let error = Asked::of(&sqe).answered(-errno::ERANGE, Held::Nothing).result.unwrap_err();
        assert_eq!(
            error.to_string(),
            "read of 4096 bytes at byte 8192 of volume 1: Numerical result out of range (os error 34); it reaches \
             beyond the end of the volume"
        );
        assert_eq!(error.errno(), errno::ERANGE);
        let failed = Asked::of(&Sqe { op: Opcode::Flush as u8, ..Sqe::default() }).failed(Cause::Unanswered);
        assert!(failed.to_string().starts_with("flush of volume 0: the context was shut down"), "{failed}");
        assert_eq!(failed.errno(), errno::EOWNERDEAD);
    }
}
