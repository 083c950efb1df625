//! Fills volumes and reads them back, with two threads for each engine that serves one of them. Each thread owns a queue.
//!
//! `cargo run -p ferrio-client --example threads -- /run/ferrio/control.sock VOLUME...`

use std::thread;

use ferrio_client::{Access, Error, Queue, QueueOptions, Request, Session, Volume};

const BLOCK: u64 = 64 << 10;
const THREADS: u32 = 2;
const DEPTH: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((socket, volumes)) if !volumes.is_empty() => run(socket, volumes),
        _ => Err("usage: threads CONTROL_SOCKET VOLUME...".into()),
    }
}

/// Opens a session with the volumes and works on all of them at once.
pub fn run(socket: &str, names: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let mut builder = Session::builder(socket).name("example").arena_bytes(16 << 20);
    for name in names {
        builder = builder.volume(name, Access::ReadWrite);
    }
    let session = builder.queues_per_engine(THREADS, QueueOptions::default()).open()?;
    let queues: Vec<Queue> =
        (0..session.queues()).map(|index| session.take_queue(index)).collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> = (0u64..)
            .zip(queues)
            .map(|(index, queue)| {
                let session = &session;
                scope.spawn(move || work(session, queue, index % u64::from(THREADS)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    println!("filled and read {} volumes with {} threads", names.len(), session.queues());
    Ok(())
}

/// Every `THREADS`-th block, from block `first`, of each volume that this queue reaches.
fn work(session: &Session, mut queue: Queue, first: u64) -> Result<(), Error> {
    let engine = queue.engine().to_owned();
    for volume in session.volumes().iter().filter(|volume| volume.engine() == engine) {
        let blocks = (first..volume.size_bytes() / BLOCK).step_by(THREADS as usize);
        pass(session, &mut queue, volume, blocks.clone(), true)?;
        queue.flush(volume)?;
        pass(session, &mut queue, volume, blocks, false)?;
    }
    Ok(())
}

/// Writes the number of each block into it, or reads and compares it; several at once.
fn pass(
    session: &Session,
    queue: &mut Queue,
    volume: &Volume,
    mut blocks: impl Iterator<Item = u64>,
    write: bool,
) -> Result<(), Error> {
    let mut spare = (0..DEPTH).map(|_| session.alloc(BLOCK as usize)).collect::<Result<Vec<_>, _>>()?;
    loop {
        while let Some(mut buffer) = spare.pop() {
            let Some(block) = blocks.next() else { break };
            buffer.fill(if write { block as u8 } else { !(block as u8) });
            let make = if write { Request::write } else { Request::read };
            let request = make(volume, block * BLOCK, buffer).tag(block);
            queue.submit(request).map_err(|error| match error {
                ferrio_client::SubmitError::Refused(refused) => refused.error,
                full => panic!("{DEPTH} requests fill no queue: {full}"),
            })?;
        }
        let Some(completion) = queue.wait(None)? else { return Ok(()) };
        completion.result?;
        let buffer = completion.buffer.expect("a transfer hands its buffer back");
        assert!(buffer.iter().all(|byte| *byte == completion.tag as u8), "block {}", completion.tag);
        spare.push(buffer);
    }
}
