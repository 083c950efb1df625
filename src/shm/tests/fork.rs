//! What a forked child finds of its parent's session. One test: a fork takes no other thread along.
#![cfg(not(any(loom, miri)))]

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ferrio_shm::arena::{AllocError, Arena};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::mapping::{Mapping, Region, create_memfd};

/// Runs `body` in a forked child and returns its exit code, or the signal that ended it, negated.
fn in_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the test process has one thread that does anything, so the child's locks are free; it leaves by
    // _exit and returns to no code of the parent.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for the child just forked, the status is an out parameter on this stack.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
        }
    }
}

#[test]
fn a_forked_child_is_told_so() {
    let guard = ForkGuard::new().unwrap();
    assert!(!guard.is_child());
    let clone = guard.clone();
    assert_eq!(in_child(|| i32::from(guard.is_child() && clone.is_child())), 1);
    let grandchild = || in_child(|| i32::from(guard.is_child()));
    assert_eq!(in_child(grandchild), 1);
    assert!(!guard.is_child());

    let memfd = create_memfd("fork", 65536).unwrap();
    let mapping = Arc::new(Mapping::new_client(memfd.as_fd(), 65536, &guard).unwrap());
    let region = Region::new(Arc::clone(&mapping), 0, 65536).unwrap();
    let arena = Arena::new(0, region, guard.clone()).unwrap();
    let mut buffer = arena.alloc(4096).unwrap();
    buffer.fill(7);

    assert_eq!(in_child(|| i32::from(arena.alloc(1).err() == Some(AllocError::Forked))), 1);
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(in_child(|| i32::from(buffer[0])), 101, "a panic, not a read of other memory");
    let _ = std::panic::take_hook();
    // Without a guard in the way the memory is not there.
    let address = mapping.u32(0).unwrap();
    assert_eq!(in_child(|| address.load(std::sync::atomic::Ordering::Relaxed).cast_signed()), -libc::SIGSEGV);

    // In a child the addresses may belong to something else: dropping must not unmap it.
    let code = in_child(|| {
        let start = std::ptr::from_ref(address).cast_mut().cast::<libc::c_void>();
        // SAFETY: nothing is mapped at the parent's addresses in this process; FIXED_NOREPLACE checks it.
        let own = unsafe {
            libc::mmap(
                start,
                65536,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if own != start {
            return 1;
        }
        // SAFETY: copies of the parent's handles, which the child owns as well; the parent's are not affected.
        let handles = unsafe { (std::ptr::read(&buffer), std::ptr::read(&arena), std::ptr::read(&mapping)) };
        drop(handles);
        // SAFETY: the page was just mapped, unless the drop above unmapped it, which is what is tested.
        unsafe { start.cast::<u8>().write_volatile(1) };
        0
    });
    assert_eq!(code, 0);

    assert!(buffer.iter().all(|&byte| byte == 7), "the parent's buffer is untouched");
    drop(buffer);
    assert_eq!(arena.alloc(65536).unwrap().len(), 65536, "and so is its arena");
}
