//! Requests beyond plain reads and writes: what the daemon sees of them, and what is refused before it does.

use std::time::Duration;

use ferrio_client::{
    Buffer, Cancelled, ChainFailure, Errno, Error, Features, IoVec, Request, Session, SubmitError, WaitPolicy,
};
use ferrio_shm::abi::{Opcode, sqe_flags};
use ferrio_shm::entry::IovEntry;

use crate::peer::{Daemon, Opened};

fn refusal(error: SubmitError) -> (Request, Error) {
    match error {
        SubmitError::Refused(refused) => (refused.request, refused.error),
        SubmitError::Full(_) => panic!("the queue is not full"),
    }
}

fn entries(table: &[u8], count: usize) -> Vec<IovEntry> {
    let word = |at: usize| u64::from_le_bytes(table[at..at + 8].try_into().unwrap());
    (0..count).map(|entry| IovEntry::from_words([word(entry * 16), word(entry * 16 + 8)])).collect()
}

fn list_of(session: &Session, buffers: impl IntoIterator<Item = Buffer>) -> IoVec {
    let mut list = session.iovec().unwrap();
    buffers.into_iter().for_each(|buffer| list.push(buffer));
    list
}

#[test]
fn a_list_reaches_the_daemon_and_comes_back() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let (first, second) = (session.alloc(4096).unwrap(), session.alloc(8192).unwrap());
    let (at_first, at_second) = (first.offset(), second.offset());
    let mut list = list_of(&session, [first]);
    list.push_range(second, 512..1024);
    list.again(1, 4096..8192);
    assert_eq!((list.len(), list.bytes()), (3, 4096 + 512 + 4096));
    queue.submit(Request::writev(&volume, 65536, list).fua(true).tag(3)).unwrap();
    queue.commit().unwrap();
    let sqe = served.take()[0];
    assert_eq!((sqe.op, sqe.flags, sqe.iov_count), (Opcode::Writev as u8, sqe_flags::FUA, 3));
    assert_eq!((sqe.offset, sqe.length, sqe.region), (65536, 8704, 0));
    let seen = entries(&served.arena(sqe.region_offset, 48), 3);
    let expected = [(at_first, 4096), (at_second + 512, 512), (at_second + 4096, 4096)];
    let expected = expected.map(|(offset, length)| IovEntry { region: 0, zero: 0, length, offset });
    assert_eq!(seen, expected);
    served.post(sqe.user_data, 8704);
    let completion = queue.poll().unwrap().unwrap();
    assert_eq!((completion.tag, completion.result), (3, Ok(8704)));
    let mut list = completion.iovec.unwrap();
    assert_eq!(list.buffer(1).unwrap().offset(), at_second);
    let back: Vec<u64> =
        list.clear().map(|memory| memory.into_buffer().map_or(0, |buffer| buffer.offset())).collect();
    assert_eq!(back, [at_first, at_second]);
    assert!(list.is_empty());
}

#[test]
fn lists_that_cannot_be_sent() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let (_, error) = refusal(queue.submit(Request::readv(&volume, 0, session.iovec().unwrap())).unwrap_err());
    assert!(matches!(error, Error::IoVecLength { entries: 0, max: 256 }), "{error}");
    let mut long = list_of(&session, [session.alloc(4096).unwrap()]);
    (0..256).for_each(|_| long.again(0, 0..512));
    let (request, error) = refusal(queue.submit(Request::readv(&volume, 0, long)).unwrap_err());
    assert_eq!(error.to_string(), "the list of memory has 257 entries; readv and writev take 1 to 256");
    assert_eq!(request.into_iovec().unwrap().len(), 257, "it comes back");
    let mut outside = list_of(&session, [session.alloc(4096).unwrap()]);
    outside.again(0, 4096..8192);
    let (_, error) = refusal(queue.submit(Request::readv(&volume, 0, outside)).unwrap_err());
    assert!(matches!(error, Error::NotOwned { .. }), "{error}");
    let other = daemon.queue(8, 8, WaitPolicy::Sleep);
    let foreign = list_of(&session, [other.session.alloc(4096).unwrap()]);
    let (_, error) = refusal(queue.submit(Request::readv(&volume, 0, foreign)).unwrap_err());
    assert!(matches!(error, Error::Foreign { what: "buffer" }), "{error}");
    assert_eq!(queue.stats().submitted, 0);
    drop((served, other.served));
}

#[test]
fn ranges_swaps_times_and_barriers() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let swap = session.alloc(8192).unwrap();
    let at = swap.offset();
    for request in [
        Request::discard(&volume, 4096, 512),
        Request::write_zeroes(&volume, 0, 1 << 40).fua(true),
        Request::compare_and_write(&volume, 8192, swap).range(1024..3072),
        Request::nop().timeout(Duration::from_nanos(1)),
        Request::nop().timeout(Duration::from_secs(100_000)),
        Request::flush(&volume).barrier(true),
    ] {
        queue.submit(request).unwrap();
    }
    queue.commit().unwrap();
    let seen = served.take();
    assert_eq!((seen[0].op, seen[0].offset, seen[0].length, seen[0].region_offset), (6, 4096, 512, 0));
    assert_eq!((seen[1].op, seen[1].length, seen[1].flags), (7, 1 << 40, sqe_flags::FUA));
    assert_eq!((seen[2].op, seen[2].length, seen[2].region_offset), (8, 1024, at + 1024));
    assert_eq!((seen[3].timeout_us, seen[4].timeout_us), (1, u32::MAX));
    assert_eq!(seen[5].flags, sqe_flags::BARRIER);
    let results = [0, 0, -libc::EILSEQ, -libc::ETIMEDOUT, 0, 0];
    seen.iter().zip(results).for_each(|(sqe, result)| served.post(sqe.user_data, result));
    let mut completions = Vec::new();
    while let Some(completion) = queue.poll().unwrap() {
        completions.push(completion);
    }
    assert_eq!(completions.len(), 6);
    assert!(completions[2].buffer.is_some(), "a swap that did not happen hands its halves back");
    assert_eq!(completions[2].result.clone().unwrap_err().errno(), Errno::EILSEQ);
}

#[test]
fn a_cancel_names_its_request() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let target = queue.submit(Request::read(&volume, 0, session.alloc(4096).unwrap())).unwrap();
    for (result, outcome) in
        [(0, Cancelled::Yes), (-libc::EALREADY, Cancelled::TooLate), (-libc::ENOENT, Cancelled::NotFound)]
    {
        queue.commit().unwrap();
        served.take();
        let answering = std::thread::spawn(move || {
            let cancel = loop {
                if let Some(sqe) = served.take().pop() {
                    break sqe;
                }
                std::thread::yield_now();
            };
            assert_eq!((cancel.op, cancel.arg), (Opcode::Cancel as u8, target.user_data()));
            served.post(cancel.user_data, result);
            served
        });
        assert_eq!(queue.cancel(target).unwrap(), outcome);
        served = answering.join().unwrap();
    }
    let two = daemon.builder().queue(Default::default()).queue(Default::default());
    let (both, served) = daemon.open(two);
    let mut first = both.take_queue(0).unwrap();
    let mut second = both.take_queue(1).unwrap();
    let ticket = first.submit(Request::nop()).unwrap();
    assert_eq!((ticket.queue(), second.index()), (0, 1));
    let (_, error) = refusal(second.submit(Request::cancel(ticket)).unwrap_err());
    assert!(matches!(error, Error::Foreign { what: "ticket" }), "{error}");
    drop(served);
}

#[test]
fn a_chain_is_shown_whole_or_not_at_all() {
    let daemon = Daemon::start();
    let Opened { mut queue, volume, mut served, .. } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let nops = |count: usize| (0..count).map(|tag| Request::nop().tag(tag as u64)).collect::<Vec<_>>();
    for _ in 0..3 {
        queue.submit(Request::flush(&volume)).unwrap();
    }
    let failure: Box<ChainFailure> = queue.submit_chain(nops(6)).unwrap_err();
    assert!(matches!(failure.error, Error::Full { queue: 0 }), "{}", failure.error);
    assert_eq!(failure.requests.len(), 6);
    queue.submit_chain(nops(5)).unwrap();
    assert!(served.take().is_empty(), "nothing is seen before the commit");
    queue.commit().unwrap();
    let seen = served.take();
    let links: Vec<bool> = seen.iter().map(|sqe| sqe.flags & sqe_flags::LINK != 0).collect();
    assert_eq!(links, [false, false, false, true, true, true, true, false]);
    // 8 places of answers are taken: no room for a chain until some are picked up.
    assert!(matches!(queue.submit_chain(nops(2)).unwrap_err().error, Error::Full { .. }));
    seen.iter().for_each(|sqe| served.post(sqe.user_data, 0));
    let mut tags = Vec::new();
    while let Some(completion) = queue.poll().unwrap() {
        tags.push(completion.tag);
    }
    assert_eq!(tags, [0, 0, 0, 0, 1, 2, 3, 4]);
    let failure = queue.submit_chain(failure.requests).unwrap();
    assert_eq!(failure.len(), 6, "what came back can be submitted");
}

#[test]
fn chains_that_no_ring_holds() {
    let daemon = Daemon::start();
    let Opened { mut queue, served, .. } = daemon.queue(64, 64, WaitPolicy::Sleep);
    let nops = |count: usize| (0..count).map(|_| Request::nop()).collect::<Vec<_>>();
    for count in [0, 33] {
        let error = queue.submit_chain(nops(count)).unwrap_err().error;
        assert!(matches!(error, Error::ChainLength { max: 32, .. }), "{error}");
    }
    let raw = ferrio_client::Sqe { flags: sqe_flags::LINK, ..Default::default() };
    let (_, error) = refusal(queue.submit(Request::raw(raw)).unwrap_err());
    assert!(matches!(error, Error::LooseLink), "{error}");
    drop(served);
    let Opened { mut queue, served, .. } = daemon.queue(4, 16, WaitPolicy::Sleep);
    let error = queue.submit_chain(nops(5)).unwrap_err().error;
    assert_eq!(error.to_string(), "the chain has 5 requests; one on this queue has 1 to 4");
    drop(served);
}

#[test]
fn what_was_not_granted_is_refused_with_its_name() {
    let daemon = Daemon::start();
    let (session, served) = daemon.open(daemon.builder().name("plain"));
    assert_eq!(session.features(), Features::NONE);
    let (mut queue, volume) = (session.take_queue(0).unwrap(), session.volume("data").unwrap());
    let buffer = || session.alloc(4096).unwrap();
    for (request, missing) in [
        (Request::readv(&volume, 0, list_of(&session, [buffer()])), Features::VECTORED),
        (Request::discard(&volume, 0, 4096), Features::DISCARD),
        (Request::write_zeroes(&volume, 0, 4096), Features::DISCARD),
        (Request::compare_and_write(&volume, 0, buffer()), Features::COMPARE_AND_WRITE),
        (Request::nop().timeout(Duration::from_secs(1)), Features::CANCEL),
        (Request::nop().barrier(true), Features::ORDER),
    ] {
        let (_, error) = refusal(queue.submit(request).unwrap_err());
        assert!(matches!(error, Error::Unsupported { missing: found } if found == missing), "{error}");
        assert!(error.to_string().contains(&missing.to_string()), "{error}");
    }
    let error = queue.submit_chain(vec![Request::nop(), Request::nop()]).unwrap_err().error;
    assert!(matches!(error, Error::Unsupported { missing: Features::ORDER }), "{error}");
    let error = session.create_region(4096).unwrap_err();
    assert!(matches!(error, Error::Unsupported { missing: Features::CLIENT_REGIONS }), "{error}");
    drop(served);
    let (asked, served) = daemon.open(daemon.builder().features(Features::ORDER | Features::VECTORED));
    assert_eq!(asked.features().to_string(), "vectored, order");
    drop(served);
}

#[test]
fn lists_and_halves_that_are_unanswered_stay_with_the_kernel() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let list = list_of(&session, [session.alloc(2 << 20).unwrap()]);
    queue.submit(Request::readv(&volume, 0, list)).unwrap();
    queue.commit().unwrap();
    drop(served);
    let completion = queue.wait(None).unwrap().unwrap();
    assert!(completion.result.is_err() && completion.iovec.is_none());
    assert!(session.alloc(3 << 20).is_err(), "its memory is given up");
}
