use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};

use super::*;
use crate::abi::{flags, opcode, rwf};

fn iocb(opcode: u16, file: &std::fs::File, data: &mut [u8], offset: i64, tag: u64) -> Iocb {
    Iocb {
        data: tag,
        opcode,
        fildes: u32::try_from(file.as_raw_fd()).expect("a descriptor"),
        buf: if data.is_empty() { 0 } else { data.as_mut_ptr().expose_provenance() as u64 },
        nbytes: data.len() as u64,
        offset,
        ..Iocb::default()
    }
}

fn reap_all(reaper: &mut Reaper, wanted: usize) -> Vec<IoEvent> {
    let mut events = Vec::new();
    while events.len() < wanted {
        reaper.reap(wanted - events.len(), |event| events.push(event));
        std::thread::yield_now();
    }
    events
}

#[test]
fn write_flush_and_read_come_back_through_the_mapped_ring() {
    let file = tempfile::tempfile().expect("tempfile");
    let (context, mut reaper) = Context::setup(8).expect("io_setup");
    assert!(reaper.is_mapped());
    assert!(reaper.is_empty());
    let (mut out, mut back) = ([0x5a_u8; 1000], [0_u8; 1500]);
    let mut write = iocb(opcode::PWRITE, &file, &mut out, 24, 1);
    write.rw_flags = rwf::DSYNC;
    let mut flush = iocb(opcode::FDSYNC, &file, &mut [], 0, 2);
    let mut read = iocb(opcode::PREAD, &file, &mut back, 24, 3);
    for (request, res) in [(&mut write, 1000), (&mut flush, 0), (&mut read, 1000)] {
        let tag = request.data;
        // SAFETY: the buffers live to the end of the test, which reaps every completion.
        assert_eq!(unsafe { context.submit(&[&raw mut *request]) }.expect("io_submit"), 1);
        let [event] = reap_all(&mut reaper, 1)[..] else { panic!("one completion") };
        assert_eq!((event.data, event.res), (tag, res));
    }
    assert_eq!(back[..1000], out);
    assert!(reaper.is_empty());
}

#[test]
fn the_ring_wraps_and_max_is_kept() {
    let mut file = tempfile::tempfile().expect("tempfile");
    file.write_all(&[7; 512]).expect("write");
    let (context, mut reaper) = Context::setup(4).expect("io_setup");
    let entries = reaper.ring.as_ref().expect("mapped").entries as usize;
    let mut data = [0_u8; 512];
    let mut seen = 0_u64;
    for round in 0..entries as u64 {
        let mut requests = [0, 1, 2].map(|n| iocb(opcode::PREAD, &file, &mut data, 0, round * 3 + n));
        let pointers = requests.each_mut().map(|request| &raw mut *request);
        // SAFETY: the buffer lives to the end of the test, and each round reaps what it submitted.
        assert_eq!(unsafe { context.submit(&pointers) }.expect("io_submit"), 3);
        for _ in 0..3 {
            let [event] = reap_all(&mut reaper, 1)[..] else { panic!("one at a time") };
            assert_eq!((event.data, event.res), (seen, 512));
            seen += 1;
        }
    }
}

#[test]
fn errors_carry_the_errno_of_the_first_request() {
    let file = tempfile::tempfile().expect("tempfile");
    let (context, mut reaper) = Context::setup(4).expect("io_setup");
    let mut data = [0_u8; 8];
    let mut good = iocb(opcode::PREAD, &file, &mut data, 0, 1);
    let mut bad = good;
    bad.fildes = 1 << 20;
    // SAFETY: the buffer lives to the end of the test, which reaps the one request that is taken.
    unsafe {
        assert_eq!(context.submit(&[&raw mut good, &raw mut bad]).expect("the first"), 1);
        let error = context.submit(&[&raw mut bad, &raw mut good]).expect_err("the first is bad");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
    assert_eq!(reap_all(&mut reaper, 1)[0].res, 0, "end of an empty file");
    let error = Context::setup(u32::MAX).expect_err("too many");
    assert!(matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINVAL)), "{error}");
}

#[test]
fn completions_ring_an_eventfd_and_wait_times_out() {
    // SAFETY: a new descriptor, owned by nobody else.
    let bell = unsafe { std::fs::File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    let file = tempfile::tempfile().expect("tempfile");
    let (context, mut reaper) = Context::setup(4).expect("io_setup");
    assert!(!reaper.wait(1, |_| panic!("nothing was submitted")).expect("io_getevents"));
    let mut request = iocb(opcode::FDSYNC, &file, &mut [], 0, 9);
    request.flags = flags::RESFD;
    request.resfd = u32::try_from(bell.as_raw_fd()).expect("a descriptor");
    // SAFETY: the request names no memory.
    unsafe { context.submit(&[&raw mut request]) }.expect("io_submit");
    let mut count = [0; 8];
    std::io::Read::read_exact(&mut &bell, &mut count).expect("the bell rings");
    assert_eq!(u64::from_ne_bytes(count), 1);
    let mut data = 0;
    assert!(reaper.wait(1000, |event| data = event.data).expect("io_getevents"));
    assert_eq!(data, 9);
}

#[test]
fn dropping_the_context_waits_for_what_is_in_flight() {
    let file = tempfile::tempfile().expect("tempfile");
    let mut data = vec![0x11_u8; 1 << 20];
    let mut request = iocb(opcode::PWRITE, &file, &mut data, 0, 1);
    let (context, reaper) = Context::setup(1).expect("io_setup");
    // SAFETY: the buffer outlives the context, whose end waits for the request.
    unsafe { context.submit(&[&raw mut request]) }.expect("io_submit");
    drop((context, reaper));
    assert_eq!(file.metadata().expect("metadata").len(), 1 << 20);
}

#[test]
fn a_poll_is_cancelled_and_answers_through_the_ring() {
    // SAFETY: a new descriptor, owned by nobody else.
    let never = unsafe { std::fs::File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    let (context, mut reaper) = Context::setup(1).expect("io_setup");
    let mut poll = iocb(opcode::POLL, &never, &mut [], 0, 5);
    poll.buf = u64::from(libc::POLLIN.cast_unsigned());
    // SAFETY: a poll names no memory, and `poll` lives to the end of the test.
    unsafe {
        context.submit(&[&raw mut poll]).expect("io_submit");
        calls::io_cancel(context.shared.id, &raw mut poll).expect("io_cancel");
    }
    assert_eq!(reap_all(&mut reaper, 1)[0].data, 5);
}
