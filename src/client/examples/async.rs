//! Copies the first half of a volume to its second half, 16 blocks at a time, on tokio.
//!
//! `cargo run -p ferrio-client --example async -- /run/ferrio/control.sock VOLUME`

use std::sync::Arc;

use ferrio_client::{Access, AsyncQueue, Error, Session, Volume};

const BLOCK: u64 = 64 << 10;
const TASKS: u64 = 16;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: async CONTROL_SOCKET VOLUME".into());
    };
    run(&socket, &name).await
}

/// Copies, and says how much.
pub async fn run(socket: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let session =
        Session::builder(socket).name("example").volume(name, Access::ReadWrite).open_async().await?;
    let volume = session.volume(name)?;
    let queue = session.take_queue(0)?.into_async()?;
    let blocks = volume.size_bytes() / 2 / BLOCK;

    let session = Arc::new(session);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (session, queue, volume) = (Arc::clone(&session), queue.clone(), volume.clone());
            tokio::spawn(async move {
                copy(&session, &queue, &volume, (task..blocks).step_by(TASKS as usize), blocks).await
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    queue.flush(&volume).await?;
    println!("copied {} MiB", (blocks * BLOCK) >> 20);
    Ok(())
}

async fn copy(
    session: &Session,
    queue: &AsyncQueue,
    volume: &Volume,
    numbers: impl Iterator<Item = u64>,
    blocks: u64,
) -> Result<(), Error> {
    let mut buffer = session.alloc(BLOCK as usize)?;
    for number in numbers {
        buffer = queue.read(volume, number * BLOCK, buffer).await?;
        buffer = queue.write(volume, (blocks + number) * BLOCK, buffer).await?;
    }
    Ok(())
}
