use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn create(path: &Path, bytes: u64) -> Target {
    Target::open(path, &OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() }).expect("create")
}

#[test]
fn creates_a_private_allocated_file() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("volume");
    let target = create(&path, 1 << 20);
    assert_eq!(target.kind(), TargetKind::File);
    assert_eq!(target.size_bytes(), 1 << 20);
    assert!(target.block_bytes() >= 512 && target.block_bytes().is_power_of_two());
    assert!(target.memory_align_bytes().is_power_of_two());
    assert_eq!(target.direct(), target.direct_reason().is_none());
    let metadata = std::fs::metadata(&path).expect("metadata");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 >= 1 << 20, "allocated");
}

#[test]
fn names_the_holder() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("volume");
    let first = create(&path, 4096);
    let error =
        Target::open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).expect_err("held");
    let TargetError::Held { holder: Some(holder), .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, std::process::id());
    assert!(error.to_string().contains(&holder.pid.to_string()), "{error}");
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let outline = Target::outline(&path, &options).expect("to look takes no lock");
    assert_eq!((outline.kind, outline.size_bytes, outline.read_only), (TargetKind::File, 4096, true));
    assert_eq!(
        (outline.block_bytes, outline.memory_align_bytes, outline.direct),
        (first.block_bytes(), first.memory_align_bytes(), first.direct())
    );
    drop(first);
    Target::open(&path, &OpenOptions::default()).expect("free again");
}

#[test]
fn refuses_what_it_cannot_serve_and_says_why() {
    let directory = tempfile::tempdir().expect("tempdir");
    let open = |path: &Path| Target::open(path, &OpenOptions::default()).expect_err("refused").to_string();

    assert!(open(&directory.path().join("absent")).contains("does not exist"));
    assert!(open(directory.path()).contains("neither a regular file nor a block device"));
    assert!(open(Path::new("/dev/zero")).contains("neither a regular file nor a block device"));

    let odd = directory.path().join("odd");
    std::fs::write(&odd, vec![0; 5000]).expect("write");
    let text = open(&odd);
    assert!(text.contains("5000 bytes") && text.contains("truncate"), "{text}");

    let empty = directory.path().join("empty");
    std::fs::write(&empty, []).expect("write");
    assert!(open(&empty).contains("is empty"));

    let no_directory = directory.path().join("absent/volume");
    let error =
        Target::open(&no_directory, &OpenOptions { create_bytes: Some(4096), ..OpenOptions::default() })
            .expect_err("refused");
    assert!(matches!(error, TargetError::Io { what: "creation of", .. }), "{error}");
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("huge");
    let error = Target::open(&path, &OpenOptions { create_bytes: Some(1 << 62), ..OpenOptions::default() })
        .expect_err("no disk is that large");
    assert!(matches!(error, TargetError::Io { .. }), "{error}");
    assert!(!path.exists());

    let error = Target::open(&path, &OpenOptions { create_bytes: Some(5000), ..OpenOptions::default() })
        .expect_err("a part of a block");
    assert!(matches!(error, TargetError::SizeNotMultiple { size: 5000, .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_null_target_has_no_description() {
    let target = Target::null(1 << 30, 4096);
    assert_eq!((target.kind(), target.size_bytes(), target.block_bytes()), (TargetKind::Null, 1 << 30, 4096));
    assert!(target.as_fd().is_none() && target.path().is_none() && !target.direct());
}

#[test]
fn finding_out_what_it_can_changes_nothing() {
    use std::os::unix::fs::FileExt;
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("volume");
    let file = File::options().create_new(true).read(true).write(true).open(&path).expect("file");
    // Neither allocated in whole nor a multiple of a page, as a file may be.
    file.set_len(1 << 20).expect("size");
    file.write_all_at(&[7; 512], 512).expect("write");
    file.sync_all().expect("sync");
    let before = file.metadata().expect("metadata");
    for _ in 0..2 {
        let target = Target::open(&path, &OpenOptions::default()).expect("target");
        assert!(target.capabilities().write_zeroes.is_supported(), "{:?}", target.capabilities());
    }
    let after = file.metadata().expect("metadata");
    assert_eq!((after.len(), after.blocks()), (before.len(), before.blocks()));
    let mut back = [0; 2048];
    file.read_exact_at(&mut back, 0).expect("read");
    assert_eq!(
        (&back[..512], &back[512..1024], &back[1024..]),
        (&[0; 512][..], &[7; 512][..], &[0; 1024][..])
    );

    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let read_only = Target::open(&path, &options).expect("target");
    assert!(
        !read_only.capabilities().discard.is_supported()
            && !read_only.capabilities().write_zeroes.is_supported()
    );
}
