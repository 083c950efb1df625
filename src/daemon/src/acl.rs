//! Who may use a volume.

use ferrio_shm::peer::PeerIdentity;

/// The users of one volume.
///
/// Without `any`, uids or gids, only root and the user the daemon runs as may use it. A list is taken literally: root
/// is not special in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    /// Whoever may open the control socket.
    pub any: bool,
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, primary or supplementary.
    pub gids: Vec<u32>,
}

impl AllowList {
    /// Whether `peer` may use the volume of a daemon that runs as `own_uid`.
    pub fn admits(&self, peer: &PeerIdentity, own_uid: u32) -> bool {
        if self.any || self.uids.contains(&peer.uid) {
            return true;
        }
        if self.uids.is_empty() && self.gids.is_empty() {
            return peer.uid == 0 || peer.uid == own_uid;
        }
        self.gids.iter().any(|gid| peer.in_group(*gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> PeerIdentity {
        PeerIdentity { pid: 1, uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn lists() {
        let nobody_listed = AllowList::default();
        let users = AllowList { uids: vec![1000, 1001], ..AllowList::default() };
        let groups = AllowList { gids: vec![6], ..AllowList::default() };
        let both = AllowList { uids: vec![1000], gids: vec![6], any: false };
        let any = AllowList { any: true, ..AllowList::default() };
        // (list, uid, gid, supplementary groups, admitted); the daemon runs as 900.
        let cases: &[(&AllowList, u32, u32, &[u32], bool)] = &[
            (&nobody_listed, 0, 0, &[], true),
            (&nobody_listed, 900, 900, &[], true),
            (&nobody_listed, 1000, 1000, &[6, 900], false),
            (&users, 1000, 1000, &[], true),
            (&users, 1002, 1000, &[1000], false),
            (&users, 0, 0, &[], false),
            (&users, 900, 900, &[], false),
            (&groups, 1000, 6, &[], true),
            (&groups, 1000, 1000, &[4, 6], true),
            (&groups, 6, 1000, &[4], false),
            (&both, 1000, 1000, &[], true),
            (&both, 1001, 1001, &[6], true),
            (&both, 1001, 1001, &[], false),
            (&any, 4711, 4711, &[], true),
        ];
        for (list, uid, gid, supplementary, admitted) in cases {
            let peer = peer(*uid, *gid, supplementary);
            assert_eq!(list.admits(&peer, 900), *admitted, "{list:?} {peer:?}");
        }
    }
}
