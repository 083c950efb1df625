//! Tests that need something the machine may lack say so, and never pass silently.

/// Effective user is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program is on the PATH.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).exists()))
}

/// Prints why a test is skipped. In CI, where everything can be installed, a skipped test fails unless `in_ci` allows it.
///
/// # Panics
/// In CI (`CI` is set), unless allowed.
pub fn skip(reason: &str, in_ci: bool) {
    println!("SKIPPED: {reason}");
    eprintln!("SKIPPED: {reason}");
    assert!(in_ci || std::env::var_os("CI").is_none(), "not to be skipped in CI: {reason}");
}
