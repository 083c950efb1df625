//! Names of users and groups to ids.

use nix::unistd::{Group, User};

/// Uid of a user name, or of a number. `None`: there is no such user.
pub fn uid(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()))
}

/// Gid of a group name, or of a number. `None`: there is no such group.
pub fn gid(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(uid("root"), Some(0));
        assert_eq!(gid("root"), Some(0));
        assert_eq!(uid("4711"), Some(4711));
        assert_eq!(uid("no-such-user-here"), None);
        assert_eq!(gid("no-such-group-here"), None);
        assert_eq!(uid("-1"), None);
    }
}
