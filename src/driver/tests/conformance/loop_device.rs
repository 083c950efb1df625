//! The suite's core on a real block device, where root may make one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferrio_driver::{DriverConfig, OpenOptions, Shape, Target, TargetError, TargetKind};

use crate::rig::{Rig, Subject, directory, flush, pattern};

/// A loop device, detached on drop.
struct Loop(PathBuf);

impl Loop {
    fn attach(backing: &Path, block: u32) -> Result<Loop, String> {
        let block = block.to_string();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size", &block])
            .arg(backing)
            .output()
            .map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Loop(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

pub fn block_device_round_trip<D: Subject>(shape: Shape) {
    for block in [512, 4096] {
        let directory = directory();
        let backing = directory.path().join("disk");
        std::fs::write(&backing, vec![0; 1 << 20]).expect("backing file");
        let device = match Loop::attach(&backing, block) {
            Ok(device) => device,
            Err(reason) => {
                eprintln!("SKIPPED: no loop device with blocks of {block}: {reason}");
                return;
            }
        };
        let target = Arc::new(Target::open(&device.0, &OpenOptions::default()).expect("target"));
        assert_eq!(target.kind(), TargetKind::Block);
        assert_eq!((target.size_bytes(), target.block_bytes()), (1 << 20, block));
        assert!(target.direct(), "{:?}", target.direct_reason());
        let again = Target::open(&device.0, &OpenOptions::default()).expect_err("in use");
        let TargetError::Held { holder: Some(holder), .. } = &again else { panic!("{again}") };
        assert_eq!(holder.pid, std::process::id());

        let config = DriverConfig { depth: 8, shape, ..DriverConfig::default() };
        let mut rig = Rig::<D>::on(&config, directory, target, 1 << 20);
        rig.memory.fill(0, &pattern(block.into(), 65536));
        assert_eq!(rig.run_one(&rig.write(0, (1 << 20) - 65536, 65536)), 65536);
        assert_eq!(rig.run_one(&flush(rig.file)), 0);
        assert_eq!(rig.run_one(&rig.read(65536, (1 << 20) - 65536, 65536)), 65536);
        assert!(rig.memory.bytes(65536, 65536) == pattern(block.into(), 65536));
        assert_eq!(rig.run_one(&rig.read(0, (1 << 20) - 65536, 131_072)), 65536, "short at the end");
        // File systems may serve this through the page cache; a device does not.
        assert_eq!(rig.run_one(&rig.read(0, u64::from(block) / 2, block)), -libc::EINVAL, "misaligned");
        rig.finish();
    }
}
