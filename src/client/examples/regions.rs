//! I/O from and to memory that the process has anyway, such as a database's buffer pool: a memfd that becomes a region of
//! the session. Nothing is copied.
//!
//! `cargo run -p ferrio-client --example regions -- /run/ferrio/control.sock VOLUME`

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use ferrio_client::{Access, Request, Session};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

const PAGE: u64 = 16 << 10;
const PAGES: u64 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: regions CONTROL_SOCKET VOLUME".into());
    };
    run(&socket, &name)
}

/// Writes a pool's pages to the volume, and reads them back in another order.
pub fn run(socket: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    // A database would map it; a file that is read and written does for an example.
    let pool = File::from(memfd_create("pool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    pool.set_len(PAGES * PAGE)?;
    fcntl_add_seals(&pool, SealFlags::SHRINK)?;

    let session = Session::builder(socket).name("example").volume(name, Access::ReadWrite).open()?;
    let volume = session.volume(name)?;
    let mut queue = session.take_queue(0)?;
    let region = session.add_region(pool.as_fd(), PAGES * PAGE)?;
    let page = |number: u64| region.span(number * PAGE..(number + 1) * PAGE);

    for number in 0..PAGES {
        pool.write_all_at(&[number as u8; PAGE as usize], number * PAGE)?;
        queue.execute(Request::write(&volume, number * PAGE, page(number)?))?;
    }
    // The last page of the volume into the first of the pool, and so on.
    for number in 0..PAGES {
        queue.execute(Request::read(&volume, (PAGES - 1 - number) * PAGE, page(number)?))?;
    }
    let mut bytes = [0; PAGE as usize];
    for number in 0..PAGES {
        pool.read_exact_at(&mut bytes, number * PAGE)?;
        assert!(bytes.iter().all(|byte| *byte == (PAGES - 1 - number) as u8), "page {number}");
    }
    session.remove_region(region)?;

    // Memory of the library's own, for buffers beside those of the arena.
    let more = session.create_region(1 << 20)?;
    let buffer = queue.read(&volume, 0, more.alloc(PAGE as usize)?)?;
    assert!(buffer.iter().all(|byte| *byte == 0));
    drop(buffer);
    session.remove_region(more)?;
    println!("{PAGES} pages went out and came back");
    Ok(())
}
