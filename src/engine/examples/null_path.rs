//! The whole null path on one thread, for counting its instructions: `null_path DEPTH ROUNDS`.
//!
//! A round is: the client publishes DEPTH reads, the engine makes one turn, the client reaps DEPTH answers. Time is made
//! up, so that every run executes the same instructions. `tests/tests/instructions.rs` counts them.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use common::{BLOCK, Client, Rig, VOLUME_BYTES};
use ferrio_driver::{Target, null::Null};
use ferrio_engine::{clock::Nanos, scheduler::DEFAULT_BUDGETS};
use ferrio_shm::{abi::Opcode, entry::Sqe};

/// Rounds before those that are counted: indices have wrapped round rings and lists by then.
const WARM_UP: u64 = 1000;

/// Made-up time. A step per turn is such that the doorbells are looked at as often as beside a client that polls.
fn now() -> Nanos {
    const STEP: Nanos = 500;
    static NOW: AtomicU64 = AtomicU64::new(0);
    NOW.fetch_add(STEP, Relaxed)
}

fn main() {
    let [depth, rounds] = arguments();
    let rig = Rig::<Null>::new(64, 256);
    let mut rig = rig.restart(|config| config.budgets = DEFAULT_BUDGETS).expect("the engine starts again");
    rig.clock = now;
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let mut client = rig.open(volume, 64);
    let mut block = 0;
    for round in 0..WARM_UP + rounds {
        publish(&mut client, depth, &mut block);
        turn(&mut rig);
        // The first requests wait until their doorbell is looked at.
        while round == 0 && client.cq.ready() != Ok(depth as u32) {
            turn(&mut rig);
        }
        reap(&mut client, depth);
    }
}

fn arguments() -> [u64; 2] {
    let words: Vec<u64> =
        env::args().skip(1).map(|word| word.parse().expect("null_path DEPTH ROUNDS")).collect();
    words.try_into().expect("null_path DEPTH ROUNDS")
}

fn publish(client: &mut Client, depth: u64, block: &mut u64) {
    for _ in 0..depth {
        *block = (*block + 7) % (VOLUME_BYTES / BLOCK);
        let offset = *block * BLOCK;
        let op = Opcode::Read as u8;
        let sqe =
            Sqe { op, user_data: *block, offset, length: BLOCK, region_offset: offset, ..Sqe::default() };
        client.sq.push(&sqe).expect("room in the SQ");
    }
    client.publish();
}

/// What the engine's thread does; callgrind finds it by its name.
#[inline(never)]
fn turn(rig: &mut Rig<Null>) {
    rig.turn();
}

fn reap(client: &mut Client, depth: u64) {
    for _ in 0..depth {
        let cqe = client.cq.pop().expect("a good ring").expect("answered within the turn");
        assert_eq!(i64::from(cqe.result), BLOCK.cast_signed());
    }
    client.cq.release();
}
