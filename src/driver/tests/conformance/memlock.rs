//! RLIMIT_MEMLOCK is met gracefully: the region works unregistered, and the driver says so.

use ferrio_driver::uring::Uring;
use ferrio_driver::{DriverConfig, Pin, Shape, Target};

use crate::child;
use crate::rig::{Memory, Rig, directory, pattern};
use ferrio_driver::SubmitHalf;

const NAME: &str = "memlock::region_beyond_the_limit_goes_unregistered";
const LIMIT: u64 = 512 << 10;
/// Nobody's; the limit counts all processes of a user.
const UID: u32 = 65_533;

#[test]
fn region_beyond_the_limit_goes_unregistered() {
    if !child::is_child(NAME) {
        let text = child::run(NAME);
        if let Some(line) = text.lines().find(|line| line.contains("SKIPPED")) {
            eprintln!("{line}");
        }
        return;
    }
    let directory = directory();
    let path = directory.path().join("volume");
    let options =
        ferrio_driver::OpenOptions { create_bytes: Some(4 << 20), ..ferrio_driver::OpenOptions::default() };
    let target = Target::open(&path, &options).expect("target").into();
    if let Err(reason) = give_up_rights() {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let config = DriverConfig { depth: 4, shape: Shape::One, ..DriverConfig::default() };
    let mut rig = Rig::<Uring>::on(&config, directory, target, 2 << 20);
    let degraded = rig.degraded();
    assert!(degraded.contains("region 0 is not registered"), "{degraded}");
    assert!(degraded.contains("RLIMIT_MEMLOCK is 524288 bytes"), "limit: {degraded}");
    assert!(degraded.contains("2097152 more"), "need: {degraded}");
    assert!(degraded.contains("LimitMEMLOCK=") && degraded.contains("CAP_IPC_LOCK"), "fix: {degraded}");
    rig.memory.fill(0, &pattern(3, 4096));
    assert_eq!(rig.run_one(&rig.write(0, 0, 4096)), 4096);
    assert_eq!(rig.run_one(&rig.read(4096, 0, 4096)), 4096);
    assert!(rig.memory.bytes(4096, 4096) == pattern(3, 4096));

    // What fits is still registered, and gives its share back when it goes.
    for _ in 0..3 {
        let small = Memory::new(128 << 10);
        let region = rig.submit.register_region(small.region.clone(), Pin::Yes).expect("region");
        assert!(rig.modes().contains("1 of 2 regions"), "{}", rig.modes());
        rig.submit.unregister_region(region).expect("idle");
    }
    rig.finish();
}

/// Becomes somebody with a low limit, without CAP_IPC_LOCK, and with no other process that counts.
fn give_up_rights() -> Result<(), String> {
    let failed = |what| format!("{what}: {}", std::io::Error::last_os_error());
    if !rustix::process::geteuid().is_root() {
        return Err("not root: the limit would count the other processes of this user".to_owned());
    }
    let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
    // SAFETY: the limit is initialised and read during the call; changing ids touches no memory.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) != 0 {
            return Err(failed("setrlimit"));
        }
        if libc::setgroups(0, std::ptr::null()) != 0 || libc::setresgid(UID, UID, UID) != 0 {
            return Err(failed("setresgid"));
        }
        if libc::setresuid(UID, UID, UID) != 0 {
            return Err(failed("setresuid"));
        }
    }
    Ok(())
}
