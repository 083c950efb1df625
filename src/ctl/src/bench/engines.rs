//! Who does the I/O: ferrio's client library, or this process itself.

use std::io;
use std::time::Duration;

use ferrio_client::{Access, Buffer, Completion, Features, Queue, QueueOptions, Session, Volume, WaitPolicy};
use ferrio_driver::direct::{DirectQueue, Done, Transfer};

use super::args::Wait;
use super::load::{Answer, Engine, Request};
use super::message::{Failure, LoadOrder, Route};

/// A queue of ferrio.
pub struct Ferrio {
    queue: Queue,
    volume: Volume,
    /// By slot; `None`: in flight.
    buffers: Box<[Option<Buffer>]>,
    /// Waits by polling, which spares the library's own account of how long it has waited.
    polls: bool,
}

impl Ferrio {
    /// Opens a session of its own.
    pub fn open(order: &LoadOrder) -> Result<Ferrio, Failure> {
        let Route::Ferrio { socket, volume, wait, merge } = &order.route else {
            return Err(Failure("this is not an order for ferrio".to_owned()));
        };
        let failed = |error: ferrio_client::Error| Failure(error.to_string());
        let access = if order.rw.writes() { Access::ReadWriteShared } else { Access::ReadOnly };
        let policy = match wait {
            Wait::Poll => WaitPolicy::Poll,
            Wait::Adaptive => WaitPolicy::default(),
            Wait::Sleep => WaitPolicy::Sleep,
        };
        let entries = order.iodepth.next_power_of_two();
        let session = Session::builder(socket)
            .name("bench")
            .volume(volume, access)
            .queue(QueueOptions { entries, wait: policy, ..QueueOptions::default() })
            .arena_bytes(u64::from(order.iodepth) * order.bs.next_multiple_of(4096))
            // Plain reads and writes, as those that it is compared with do.
            .features(Features::NONE)
            .merge(*merge)
            // Numbers over a restart are worth nothing.
            .patience(Duration::ZERO)
            .open()
            .map_err(failed)?;
        let buffer = |_| session.alloc(order.bs as usize).map(Some);
        let buffers = (0..order.iodepth).map(buffer).collect::<Result<_, _>>().map_err(failed)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Ferrio {
            queue: session.take_queue(0).map_err(failed)?,
            volume: session.volume(volume).map_err(failed)?,
            buffers,
            polls: *wait == Wait::Poll && cpus > 1,
        })
    }

    fn take(&mut self, completion: Completion, done: &mut Vec<Answer>) {
        let slot = completion.tag as u32;
        self.buffers[slot as usize] = completion.buffer;
        let error = completion.result.err().map(|error| error.to_string().into());
        done.push(Answer { slot, error });
    }

    /// The next completion, for which it waits as ordered.
    fn first(&mut self) -> Result<Option<Completion>, ferrio_client::Error> {
        if !self.polls {
            return self.queue.wait(None);
        }
        self.queue.commit()?;
        loop {
            match self.queue.poll()? {
                None => std::hint::spin_loop(),
                found => return Ok(found),
            }
        }
    }
}

impl Engine for Ferrio {
    fn buffer(&mut self, slot: u32) -> Result<&mut [u8], Failure> {
        let buffer = self.buffers[slot as usize].as_deref_mut();
        buffer.ok_or_else(|| Failure(format!("the buffer of slot {slot} did not come back")))
    }

    fn stage(&mut self, request: Request) -> Result<(), Failure> {
        let Request { slot, write, offset } = request;
        let buffer = self.buffers[slot as usize].take();
        let buffer = buffer.ok_or_else(|| Failure(format!("the buffer of slot {slot} did not come back")))?;
        let request = match write {
            true => ferrio_client::Request::write(&self.volume, offset, buffer),
            false => ferrio_client::Request::read(&self.volume, offset, buffer),
        };
        match self.queue.submit(request.tag(slot.into())) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure(error.to_string())),
        }
    }

    fn wait(&mut self, done: &mut Vec<Answer>) -> Result<(), Failure> {
        let failed = |error: ferrio_client::Error| Failure(error.to_string());
        if let Some(completion) = self.first().map_err(failed)? {
            self.take(completion, done);
        }
        // Whatever else is there, so that one commit submits all successors.
        while let Some(completion) = self.queue.poll().map_err(failed)? {
            self.take(completion, done);
        }
        Ok(())
    }
}

/// One of the driver's direct queues.
pub struct Direct<Q> {
    queue: Q,
    bs: u64,
    done: Vec<Done>,
}

impl<Q: DirectQueue> Direct<Q> {
    pub fn new(queue: Q, bs: u64, depth: u32) -> Direct<Q> {
        Direct { queue, bs, done: Vec::with_capacity(depth as usize) }
    }

    fn error(&self, result: i32) -> Option<Box<str>> {
        match u64::try_from(result) {
            Ok(bytes) if bytes == self.bs => None,
            Ok(bytes) => Some(format!("{bytes} of {} bytes moved", self.bs).into()),
            Err(_) => Some(io::Error::from_raw_os_error(result.saturating_neg()).to_string().into()),
        }
    }
}

impl<Q: DirectQueue> Engine for Direct<Q> {
    fn buffer(&mut self, slot: u32) -> Result<&mut [u8], Failure> {
        Ok(self.queue.buffer(slot))
    }

    fn stage(&mut self, request: Request) -> Result<(), Failure> {
        let Request { slot, write, offset } = request;
        self.queue.stage(Transfer { slot, write, offset });
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Answer>) -> Result<(), Failure> {
        self.queue.wait(&mut self.done).map_err(Failure::of("waiting for completions failed"))?;
        for &Done { slot, result } in &self.done {
            done.push(Answer { slot, error: self.error(result) });
        }
        self.done.clear();
        Ok(())
    }
}
