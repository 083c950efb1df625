//! A tiny store that several writers may share: a lock by compare-and-write, a commit by a chain, a log entry from several
//! buffers, space given back.
//!
//! `cargo run -p ferrio-client --example operations -- /run/ferrio/control.sock VOLUME`

use std::time::Duration;

use ferrio_client::{Access, Cancelled, Errno, Queue, Request, Session, Support, Volume};

const BLOCK: usize = 4096;
/// Blocks of the volume: who holds it, what the last entry is, where entries are.
const LOCK: u64 = 0;
const HEAD: u64 = BLOCK as u64;
const LOG: u64 = 2 * BLOCK as u64;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: operations CONTROL_SOCKET VOLUME".into());
    };
    run(&socket, &name)
}

/// Takes the lock, appends three entries, gives the first back, and lets the lock go.
pub fn run(socket: &str, name: &str) -> Outcome<()> {
    let session = Session::builder(socket).name("example").volume(name, Access::ReadWriteShared).open()?;
    println!("granted: {}", session.features());
    let volume = session.volume(name)?;
    let mut queue = session.take_queue_for(&volume)?;
    queue.write_zeroes(&volume, LOCK, 2 * BLOCK as u64)?;

    assert!(swap_lock(&session, &mut queue, &volume, 0, 1)?, "nobody holds it");
    assert!(!swap_lock(&session, &mut queue, &volume, 0, 2)?, "the first one does");
    for number in 1..=3 {
        append(&session, &mut queue, &volume, number)?;
    }
    let head = queue.read(&volume, HEAD, session.alloc(BLOCK)?)?;
    assert_eq!(head[0], 3, "the last entry that was committed");
    give_back(&mut queue, &volume)?;
    assert!(swap_lock(&session, &mut queue, &volume, 1, 0)?);
    change_of_mind(&session, &mut queue, &volume)?;
    println!("three entries were committed");
    Ok(())
}

/// Puts `new` into the lock if it holds `old`, in one step; false: it does not.
fn swap_lock(session: &Session, queue: &mut Queue, volume: &Volume, old: u8, new: u8) -> Outcome<bool> {
    let mut halves = session.alloc(2 * BLOCK)?;
    halves.fill(0);
    (halves[0], halves[BLOCK]) = (old, new);
    match queue.compare_and_write(volume, LOCK, halves) {
        Ok(_) => Ok(true),
        Err(failure) if failure.error.errno() == Some(Errno::EILSEQ) => Ok(false),
        Err(failure) => Err(failure.error.into()),
    }
}

/// An entry of two parts, then the head that names it: a chain, so that the head never names what is not there.
fn append(session: &Session, queue: &mut Queue, volume: &Volume, number: u8) -> Outcome<()> {
    let (mut title, mut body, mut head) =
        (session.alloc(BLOCK)?, session.alloc(BLOCK)?, session.alloc(BLOCK)?);
    title.fill(number);
    body.fill(number + 100);
    head.fill(0);
    head[0] = number;
    let mut entry = session.iovec()?;
    entry.push(title);
    entry.push(body);
    let at = LOG + (u64::from(number) - 1) * 2 * BLOCK as u64;
    let chain = vec![Request::writev(volume, at, entry), Request::write(volume, HEAD, head).fua(true)];
    for member in queue.execute_chain(chain)? {
        member.result?;
    }
    let mut pieces = session.iovec()?;
    pieces.push(session.alloc(BLOCK)?);
    pieces.push(session.alloc(BLOCK)?);
    let pieces = queue.readv(volume, at, pieces)?;
    let byte = |piece: usize| pieces.buffer(piece).map(|buffer| buffer[0]);
    assert_eq!((byte(0), byte(1)), (Some(number), Some(number + 100)));
    Ok(())
}

fn give_back(queue: &mut Queue, volume: &Volume) -> Outcome<()> {
    match volume.discard() {
        Support::Unsupported(why) => println!("no discard on this volume: {why}"),
        Support::Native(how) | Support::Emulated(how) => {
            queue.discard(volume, LOG, 2 * BLOCK as u64)?;
            println!("discarded by {how}");
        }
    }
    Ok(())
}

/// A request that may be taken back, and one that does not wait for long.
fn change_of_mind(session: &Session, queue: &mut Queue, volume: &Volume) -> Outcome<()> {
    let read = Request::read(volume, LOG, session.alloc(BLOCK)?);
    let ticket = queue.submit(read.timeout(Duration::from_secs(5)))?;
    let cancelled = queue.cancel(ticket)?;
    let completion = queue.wait(None)?.ok_or("every request is answered")?;
    assert_eq!(completion.ticket, ticket);
    match completion.result {
        Ok(_) => assert_ne!(cancelled, Cancelled::Yes),
        Err(error) => assert_eq!((error.errno(), cancelled), (Errno::ECANCELED, Cancelled::Yes)),
    }
    Ok(())
}
