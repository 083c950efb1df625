//! Reads the first bytes of a volume, in blocking style, then again with many requests in flight.
//!
//! `cargo run -p ferrio-client --example blocking -- /run/ferrio/control.sock VOLUME`

use std::time::Instant;

use ferrio_client::{Access, QueueOptions, Request, Session};

const BLOCK: usize = 4096;
const DEPTH: usize = 32;
const READS: u64 = 20_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: blocking CONTROL_SOCKET VOLUME".into());
    };
    run(&socket, &name)
}

/// Reads in both ways, and says how fast that was.
pub fn run(socket: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::builder(socket)
        .name("example")
        .volume(name, Access::ReadOnly)
        .queue(QueueOptions { entries: DEPTH as u32, ..QueueOptions::default() })
        .open()?;
    let volume = session.volume(name)?;
    let mut queue = session.take_queue(0)?;
    let blocks = volume.size_bytes() / BLOCK as u64;

    let mut buffer = session.alloc(BLOCK)?;
    let start = Instant::now();
    for read in 0..READS {
        buffer = queue.read(&volume, read % blocks * BLOCK as u64, buffer)?;
    }
    println!("one at a time: {:.0} reads/s", READS as f64 / start.elapsed().as_secs_f64());

    let mut spare: Vec<_> = (0..DEPTH).map(|_| session.alloc(BLOCK)).collect::<Result<_, _>>()?;
    let (start, mut sent, mut done) = (Instant::now(), 0, 0);
    while done < READS {
        while sent < READS
            && let Some(buffer) = spare.pop()
        {
            queue.submit(Request::read(&volume, sent % blocks * BLOCK as u64, buffer))?;
            sent += 1;
        }
        let Some(completion) = queue.wait(None)? else { break };
        completion.result?;
        spare.extend(completion.buffer);
        done += 1;
    }
    println!("{DEPTH} in flight: {:.0} reads/s", READS as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
