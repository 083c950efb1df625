//! Requests that the library itself must not let through: memory and volumes of somebody else.

use ferrio_client::{Error, Request, Sqe, SubmitError, WaitPolicy};
use ferrio_shm::abi::Opcode;
use ferrio_shm::entry::IovEntry;

use crate::peer::{Daemon, Opened};

fn refusal(error: SubmitError) -> Error {
    match error {
        SubmitError::Refused(refused) => refused.error,
        SubmitError::Full(_) => panic!("the queue is not full"),
    }
}

#[test]
fn things_of_another_session() {
    let daemon = Daemon::start();
    let mut mine = daemon.queue(4, 4, WaitPolicy::Sleep);
    let other = daemon.queue(4, 4, WaitPolicy::Sleep);
    let foreign = Request::read(&mine.volume, 0, other.session.alloc(512).unwrap());
    let error = refusal(mine.queue.submit(foreign).unwrap_err());
    assert!(matches!(error, Error::Foreign { what: "buffer" }), "{error}");
    let foreign = Request::read(&other.volume, 0, mine.session.alloc(512).unwrap());
    let error = refusal(mine.queue.submit(foreign).unwrap_err());
    assert!(matches!(error, Error::Foreign { what: "volume" }), "{error}");
    assert_eq!(mine.queue.stats().submitted, 0);
    // The daemon's sides first: the clients wait for them.
    drop((mine.served, other.served));
}

#[test]
fn ranges_outside_of_the_buffer() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let neighbour = session.alloc(4096).unwrap();
    let buffer = session.alloc(4096).unwrap();
    let read = Request::read(&volume, 0, buffer);
    let SubmitError::Refused(refused) = queue.submit(read.range(512..8192)).unwrap_err() else { panic!() };
    assert!(matches!(refused.error, Error::NotOwned { .. }), "{}", refused.error);
    queue.submit(refused.request.range(512..1024)).unwrap();
    queue.commit().unwrap();
    let sqe = served.take()[0];
    assert_eq!((sqe.region_offset - neighbour.offset(), sqe.length), (4096 + 512, 512));
}

#[test]
fn raw_requests() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, mut served, .. } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let buffer = session.alloc(4096).unwrap();
    let read = Sqe { op: Opcode::Read as u8, length: 512, ..Sqe::default() };
    let error =
        refusal(queue.submit(Request::raw(Sqe { region_offset: buffer.offset(), ..read })).unwrap_err());
    assert!(matches!(error, Error::NotOwned { .. }), "without a buffer: {error}");
    // Whatever cannot touch the arena is for the daemon to refuse.
    for sqe in [
        Sqe { op: 200, reserved: 1, ..Sqe::default() },
        Sqe { region: 7, ..read },
        Sqe { region_offset: u64::MAX - 5, ..read },
        Sqe { region_offset: 4 << 20, ..read },
    ] {
        queue.submit(Request::raw(Sqe { user_data: 3, ..sqe })).unwrap();
        queue.commit().unwrap();
        let seen = served.take()[0];
        assert_eq!(Sqe { user_data: seen.user_data, ..sqe }, seen);
        served.post(seen.user_data, -libc::EINVAL);
        let completion = queue.poll().unwrap().unwrap();
        assert_eq!(completion.result.unwrap_err().errno(), ferrio_client::Errno::EINVAL);
        assert_eq!(completion.tag, 3);
    }
}

#[test]
fn raw_iov_tables_name_their_own_buffer_only() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, .. } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let (neighbour, mut buffer) = (session.alloc(4096).unwrap(), session.alloc(8192).unwrap());
    let table_at = buffer.offset();
    let mut readv = |mut buffer: ferrio_client::Buffer, offset: u64| {
        let entry = IovEntry { region: 0, zero: 0, length: 512, offset };
        for (bytes, word) in buffer.chunks_exact_mut(8).zip(entry.to_words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let sqe = Sqe {
            op: Opcode::Readv as u8,
            region_offset: table_at,
            iov_count: 1,
            length: 512,
            ..Sqe::default()
        };
        queue.submit(Request::raw(sqe).with_buffer(buffer))
    };
    let error = readv(buffer, neighbour.offset()).unwrap_err();
    let SubmitError::Refused(refused) = error else { panic!("not full") };
    assert!(matches!(refused.error, Error::NotOwned { .. }), "{}", refused.error);
    buffer = refused.request.into_buffer().unwrap();
    readv(buffer, table_at + 4096).unwrap();
}
