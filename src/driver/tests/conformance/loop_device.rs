//! The suite's core on a real block device, where root may make one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferrio_driver::{DriverConfig, Op, OpKind, OpenOptions, Shape, Target, TargetError, TargetKind};

use crate::rig::{Rig, Subject, directory, flush, pattern};

/// A loop device, detached on drop.
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn attach(backing: &Path, block: u32) -> Result<Loop, String> {
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
        // A loop device over a file discards and zeroes, as the file system under it does.
        let capabilities = *rig.target.capabilities();
        assert!(capabilities.discard.is_supported(), "{capabilities:?}");
        assert!(capabilities.write_zeroes.is_supported(), "{capabilities:?}");
        for (kind, offset) in [(OpKind::WriteZeroes, (1 << 20) - 65536), (OpKind::Discard, (1 << 20) - 32768)]
        {
            let range = Op { kind, ..rig.read(0, offset, 4096) };
            assert_eq!(rig.run_one(&range), 0, "{kind:?}");
        }
        assert_eq!(rig.run_one(&rig.read(0, (1 << 20) - 65536, 16384)), 16384);
        let wanted = [vec![0; 4096], pattern(block.into(), 65536)[4096..16384].to_vec()].concat();
        assert!(rig.memory.bytes(0, 16384) == wanted);
        another_size_is_noticed(&rig.target, &device, &backing);
        rig.finish();
    }
}

/// The device grows with its file, when told to; the target then has the size of the device, and no other.
fn another_size_is_noticed(target: &Target, device: &Loop, backing: &Path) {
    std::fs::File::options().write(true).open(backing).expect("backing file").set_len(2 << 20).expect("grow");
    let error = target.resize(2 << 20).expect_err("the device has not grown yet");
    assert!(matches!(error, TargetError::DeviceSize { size: 0x10_0000, asked: 0x20_0000, .. }), "{error}");
    assert_eq!(target.size_bytes(), 1 << 20);
    let status = Command::new("losetup").arg("--set-capacity").arg(&device.0).status().expect("losetup");
    assert!(status.success());
    target.resize(2 << 20).expect("the size it has now");
    assert_eq!(target.size_bytes(), 2 << 20);
}
