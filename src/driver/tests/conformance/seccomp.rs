//! System calls refused by a filter: as a container's default profile blocks them, and now and then.

use std::time::Instant;

use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::select::{Backend, BackendChoice, choose, probe};
use ferrio_driver::uring::Uring;
use ferrio_driver::{DriverError, Shape, SubmitHalf};

use crate::child;
use crate::rig::{PATIENCE, Rig, Subject, nop, pattern};

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_MORE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
/// Where `struct seccomp_data` has the number of the call.
const CALL: u32 = 0;
/// Where it has the low word of the second argument: the entries of io_uring_enter and of io_submit.
const SECOND_ARGUMENT: u32 = if cfg!(target_endian = "little") { 24 } else { 28 };

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: libc::c_long, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k: k as u32 }
}

fn refuse(errno: libc::c_int) -> libc::sock_filter {
    statement(RETURN, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

/// Makes the system calls numbered `first ..= last` fail with EPERM.
fn block(first: libc::c_long, last: libc::c_long) {
    install(&mut [
        statement(LOAD, CALL),
        jump(IF_AT_LEAST, first, 0, 2),
        jump(IF_MORE, last, 1, 0),
        refuse(libc::EPERM),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ]);
}

/// Makes `call` fail with EAGAIN whenever it is to submit an odd number of entries.
fn refuse_odd_batches(call: libc::c_long) {
    install(&mut [
        statement(LOAD, CALL),
        jump(IF_EQUAL, call, 0, 3),
        statement(LOAD, SECOND_ARGUMENT),
        jump(IF_SET, 1, 0, 1),
        refuse(libc::EAGAIN),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ]);
}

/// For this thread and its children; the numbers are those of this machine's own calls.
fn install(filter: &mut [libc::sock_filter]) {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program points to `filter`, of that length, which lives through the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn here_auto_says_why() {
    let (backend, reason) = choose(BackendChoice::Auto).expect("one of them works");
    match probe().io_uring {
        Ok(()) => assert_eq!((backend, reason.as_str()), (Backend::IoUring, "auto: io_uring works here")),
        Err(_) => assert_eq!(backend, Backend::Aio),
    }
    assert_eq!(choose(BackendChoice::Null).expect("always").0, Backend::Null);
    for choice in [BackendChoice::Auto, BackendChoice::IoUring, BackendChoice::Aio, BackendChoice::Null] {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    assert!("epoll".parse::<BackendChoice>().is_err_and(|text| text.contains("io_uring")));
}

#[test]
fn auto_falls_back_to_aio_and_names_seccomp() {
    let name = "seccomp::auto_falls_back_to_aio_and_names_seccomp";
    if !child::is_child(name) {
        child::run(name);
        return;
    }
    block(libc::SYS_io_uring_setup, libc::SYS_io_uring_register);
    let refused = probe().io_uring.expect_err("blocked");
    assert!(refused.contains("seccomp") && refused.contains("EPERM"), "{refused}");
    let (backend, reason) = choose(BackendChoice::Auto).expect("AIO");
    assert_eq!(backend, Backend::Aio);
    assert!(reason.contains("seccomp"), "{reason}");
    let Err(DriverError::Unavailable { backend: "io_uring", reason }) = choose(BackendChoice::IoUring) else {
        panic!("what is asked for by name does not fall back")
    };
    assert!(reason.contains("seccomp"), "{reason}");
    works::<Aio>();
}

#[test]
fn with_both_blocked_each_is_named() {
    let name = "seccomp::with_both_blocked_each_is_named";
    if !child::is_child(name) {
        child::run(name);
        return;
    }
    block(libc::SYS_io_uring_setup, libc::SYS_io_uring_register);
    block(libc::SYS_io_setup, libc::SYS_io_setup);
    let error = choose(BackendChoice::Auto).expect_err("nothing is left").to_string();
    assert!(
        error.contains("io_uring: blocked by seccomp") && error.contains("aio: blocked by seccomp"),
        "{error}"
    );
}

/// EAGAIN keeps the batch, in order, and sleeping with it staged does not sleep for ever.
fn batches_survive_eagain<D: Subject>(name: &str, call: libc::c_long) {
    if !child::is_child(name) {
        child::run(name);
        return;
    }
    let mut rig = Rig::<D>::new(Shape::One, 8);
    refuse_odd_batches(call);
    let mut kept = 0;
    for round in 0..50 {
        // Two and the doorbell poll are odd, as are three alone.
        let mut staged = 2 + round % 2;
        for user in 0..staged {
            let op = rig.read(u64::from(user) * 4096, 0, 4096);
            rig.stage(user, &op);
        }
        if staged == 3 {
            let taken = rig.submit.commit().expect("EAGAIN is no error");
            assert_eq!(taken + rig.submit.staged(), staged);
        }
        // No timeout, no doorbell, perhaps nothing in the kernel: then only the driver itself can end this sleep.
        rig.submit.sleep(rig.doorbells.as_fd(), None).expect("sleep");
        kept += u32::from(rig.submit.staged() > 0);
        while rig.submit.staged() > 0 {
            let op = rig.read(u64::from(staged) * 4096, 0, 4096);
            rig.stage(staged, &op);
            staged += 1;
            rig.submit.commit().expect("commit");
        }
        let mut users: Vec<u32> = Vec::new();
        for completion in rig.wait(staged as usize) {
            assert_eq!(completion.result, 4096);
            users.push(completion.user);
            rig.submit.release(completion.tag);
        }
        users.sort_unstable();
        assert_eq!(users, (0..staged).collect::<Vec<_>>());
        // With nothing staged the doorbells wake still, though arming them alone is refused as well.
        rig.doorbells.ring();
        let begun = Instant::now();
        rig.submit.sleep(rig.doorbells.as_fd(), Some(PATIENCE)).expect("sleep");
        assert!(rig.doorbells.silence() && begun.elapsed() < PATIENCE / 2);
        // Reaps the poll, so that it is armed again.
        assert_eq!(rig.run_one(&nop()), 0);
    }
    assert!(kept > 0, "nothing was refused");
    rig.finish();
}

#[test]
fn io_uring_batches_survive_eagain() {
    batches_survive_eagain::<Uring>("seccomp::io_uring_batches_survive_eagain", libc::SYS_io_uring_enter);
}

#[test]
fn aio_batches_survive_eagain() {
    batches_survive_eagain::<Aio>("seccomp::aio_batches_survive_eagain", libc::SYS_io_submit);
}

#[test]
fn fault_batches_survive_eagain() {
    let name = "seccomp::fault_batches_survive_eagain";
    batches_survive_eagain::<Fault<Uring>>(name, libc::SYS_io_uring_enter);
}

fn works<D: Subject>() {
    let mut rig = Rig::<D>::new(Shape::One, 4);
    rig.memory.fill(0, &pattern(1, 4096));
    assert_eq!(rig.run_one(&rig.write(0, 0, 4096)), 4096);
    assert_eq!(rig.run_one(&rig.read(4096, 0, 4096)), 4096);
    assert!(rig.memory.bytes(4096, 4096) == pattern(1, 4096));
    rig.finish();
}
