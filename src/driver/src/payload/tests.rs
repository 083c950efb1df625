//! The erasure itself, also under Miri: with kinds that touch no file.

use super::*;

/// As much as fits.
#[derive(Clone, Copy)]
struct Sum([u64; 3]);

/// Nothing.
#[derive(Clone, Copy)]
struct Descriptor;

impl Kind for Sum {
    const NAME: &'static str = "sum";

    fn sqe(self, _: types::Fd, _: Option<u16>) -> Option<squeue::Entry> {
        None
    }

    fn iocb(self) -> Option<Iocb> {
        Some(Iocb { offset: self.0.iter().sum::<u64>().cast_signed(), ..Iocb::default() })
    }

    fn perform(self, _: BorrowedFd<'_>) -> i32 {
        self.0.iter().sum::<u64>() as i32
    }
}

impl Kind for Descriptor {
    const NAME: &'static str = "descriptor";

    fn sqe(self, _: types::Fd, _: Option<u16>) -> Option<squeue::Entry> {
        None
    }

    fn iocb(self) -> Option<Iocb> {
        None
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        fd_of(fd)
    }
}

#[test]
fn each_kind_gets_its_own_data_back() {
    let payloads: Vec<Payload> = (0..100)
        .map(|n| match n % 2 {
            0 => Payload::new(n as RawFd, Sum([n, 2 * n, 3 * n])),
            _ => Payload::new(n as RawFd, Descriptor),
        })
        .collect();
    // Copied, moved to another thread, and carried out there.
    let copies = payloads.clone();
    let perform = move || {
        // SAFETY: these kinds name no memory and touch no file.
        copies.iter().map(|payload| unsafe { payload.perform() }).collect::<Vec<_>>()
    };
    let results = std::thread::spawn(perform).join().expect("no panic");
    for (n, (payload, result)) in (0..).zip(payloads.iter().zip(results)) {
        let (name, wanted) = if n % 2 == 0 { ("sum", 6 * n) } else { ("descriptor", n) };
        assert_eq!((payload.table.name, result), (name, wanted));
        let iocb = payload.iocb();
        assert_eq!(
            iocb.map(|iocb| (iocb.fildes, iocb.offset)),
            (n % 2 == 0).then_some((n as u32, 6 * i64::from(n)))
        );
        assert!(payload.sqe(None).is_none());
    }
}

/// It goes by value through slots and queues.
#[test]
fn payloads_are_no_larger_than_their_largest_kind() {
    eprintln!("payload: {} bytes, of which data: {}", size_of::<Payload>(), size_of::<Data>());
    assert_eq!((size_of::<Data>(), size_of::<Payload>()), (24, 40));
}
