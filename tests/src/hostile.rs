//! Hostile things, done again and again, by a process of another user: what they cost the others is then the daemon's doing.

use std::{
    collections::VecDeque,
    hint::black_box,
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use ferrio_api::v1::Access;
use ferrio_shm::{abi::Opcode, entry::Sqe, lease::LeaseMessage, peer};
use rustix::{
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    time::{ClockId, clock_gettime},
};

use crate::raw::{self, RawSession};

/// What a neutral process computes at once.
const SLICE: Duration = Duration::from_micros(200);

/// Volume that it opens.
pub const TARGET: &str = "target";

/// A hostile thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Act {
    /// Connects to the attach socket, says something useless, and keeps the connection for a while.
    AttachFlood,
    /// Connects to the attach socket without ever waiting in line, and closes the connection.
    AttachStorm,
    /// Connects to the control socket and closes the connection.
    ControlFlood,
    /// Connects to the control socket, sends what is not HTTP, and closes the connection.
    ControlGarbage,
    /// Random bytes into the entries of its rings, with indices that are right, so that the session lives.
    RandomRings,
    /// Rings for nothing.
    FullDoorbell,
    /// Opens sessions and breaks them.
    BrokenSessions,
    /// Requests that are refused.
    BadRequests,
}

impl Act {
    /// The name by which the test client knows it.
    ///
    /// # Panics
    /// Never: each has one.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }

    /// Does it for ever, after `ready` was called.
    ///
    /// # Panics
    /// The daemon is gone, or refuses its first session.
    pub fn run(self, control: &Path, ready: impl FnOnce()) -> ! {
        match self {
            Self::AttachFlood => flood_attach(control, ready),
            Self::AttachStorm => storm_attach(control, ready),
            Self::ControlFlood => flood_control(control, &[], ready),
            Self::ControlGarbage => flood_control(control, &[0x5e; 100], ready),
            Self::RandomRings => scribble(attacker(control), ready),
            Self::FullDoorbell => fill_doorbell(&attacker(control), ready),
            Self::BrokenSessions => open_and_break(control, ready),
            Self::BadRequests => bad_requests(attacker(control), ready),
        }
    }
}

/// Takes so much of a CPU (0 to 1) for ever, in slices, and does nothing to anybody. It sleeps in one piece between two of
/// them: to wake all the time would be a neighbour's offence, too.
pub fn compute(share: f64) -> ! {
    let start = Instant::now();
    loop {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let used = Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32);
        let due = used.as_secs_f64() / share.max(1e-3) - start.elapsed().as_secs_f64();
        if due > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(due));
        }
        let slice = Instant::now() + SLICE;
        while Instant::now() < slice {
            black_box(slice);
        }
    }
}

fn attacker(control: &Path) -> RawSession {
    RawSession::open(control, &[(TARGET, Access::ReadWriteShared)], 32)
}

fn flood_attach(control: &Path, ready: impl FnOnce()) -> ! {
    let (path, message) = (control.with_file_name("attach.sock"), LeaseMessage::Close.encode());
    let mut open = VecDeque::new();
    peer::connect(&path).expect("the daemon serves");
    ready();
    loop {
        if let Ok(socket) = peer::connect(&path) {
            let _ = peer::send_message(&socket, &message, &[]);
            open.push_back(socket);
        }
        if open.len() > 50 {
            open.pop_front();
        }
    }
}

fn storm_attach(control: &Path, ready: impl FnOnce()) -> ! {
    let path = SocketAddrUnix::new(control.with_file_name("attach.sock")).expect("a short path");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    ready();
    loop {
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let socket = socket.expect("a socket");
        // It takes the places of those who wait in line, before they wake.
        while net::connect(&socket, &path).is_err() {}
    }
}

fn flood_control(control: &Path, message: &[u8], ready: impl FnOnce()) -> ! {
    UnixStream::connect(control).expect("the daemon serves");
    ready();
    loop {
        if let Ok(mut stream) = UnixStream::connect(control) {
            let _ = stream.write_all(message);
        }
    }
}

fn scribble(mut session: RawSession, ready: impl FnOnce()) -> ! {
    let (start, length) = (session.queue.sqes_offset as usize, session.queue.sq_entries as usize * 8);
    let mut random = 0x5eed_u64;
    ready();
    loop {
        let words = session.memory.u64s(start, length).expect("the SQEs lie in the memory");
        for word in words {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.store(random >> 7, Relaxed);
        }
        flood_ring(&mut session, &Sqe { op: (random >> 60) as u8, length: random, ..Sqe::default() });
    }
}

fn fill_doorbell(session: &RawSession, ready: impl FnOnce()) -> ! {
    ready();
    loop {
        session.doorbell.ring().expect("the daemon lives");
    }
}

fn open_and_break(control: &Path, ready: impl FnOnce()) -> ! {
    drop(attacker(control));
    ready();
    loop {
        // Those that it broke may still count.
        let Ok(opened) = raw::open(control, &[(TARGET, Access::ReadWriteShared)], 32) else { continue };
        let session = RawSession::attach(&opened);
        let tail = session.memory.u32(session.queue.control_offset as usize).expect("the control block");
        tail.store(1000, Relaxed);
        session.doorbell.ring().expect("the daemon lives");
    }
}

fn bad_requests(mut session: RawSession, ready: impl FnOnce()) -> ! {
    let wild = Sqe { op: Opcode::Read as u8, volume: 9, length: u64::MAX, ..Sqe::default() };
    ready();
    loop {
        flood_ring(&mut session, &wild);
    }
}

/// Fills the ring with this, and takes what was answered.
fn flood_ring(session: &mut RawSession, sqe: &Sqe) {
    while session.sq.push(sqe).is_ok() {}
    if session.sq.publish() {
        session.doorbell.ring().expect("the daemon lives");
    }
    while let Ok(Some(_)) = session.cq.pop() {}
    session.cq.release();
}
