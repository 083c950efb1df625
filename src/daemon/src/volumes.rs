//! The volumes, and which session uses which.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrio_driver::Target;
use ferrio_engine::VolumeId;

use crate::access::Access;
use crate::config::VolumeSection;

/// One volume, open and bound to its engine.
#[derive(Debug)]
pub struct Volume {
    /// As configured.
    pub section: VolumeSection,
    /// The open file or device.
    pub target: Arc<Target>,
    /// Index of its home engine.
    pub engine: usize,
    /// Its id there.
    pub id: VolumeId,
}

/// A session that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Session.
    pub session_id: u64,
    /// Name of its client.
    pub client_name: String,
    /// Process that opened it.
    pub pid: u32,
    /// User of that process.
    pub uid: u32,
    /// Access it holds.
    pub access: Access,
}

/// All volumes, in the order of the configuration.
#[derive(Debug)]
pub struct Volumes {
    list: Vec<Volume>,
    /// By volume index.
    holders: Mutex<Vec<Vec<Holder>>>,
}

/// The volumes a session holds; given back on drop.
#[derive(Debug)]
pub struct Hold {
    volumes: Arc<Volumes>,
    session_id: u64,
}

/// Why a volume could not be taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// Index of the volume.
    pub volume: usize,
    /// Who has it.
    pub by: Holder,
}

impl Volumes {
    /// Nobody uses them yet.
    pub fn new(list: Vec<Volume>) -> Self {
        let holders = Mutex::new(list.iter().map(|_| Vec::new()).collect());
        Self { list, holders }
    }

    /// All of them.
    pub fn list(&self) -> &[Volume] {
        &self.list
    }

    /// Index of a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|volume| volume.section.name.value == name)
    }

    /// Names, for messages.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.list.iter().map(|volume| volume.section.name.value.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Who uses a volume.
    pub fn holders(&self, volume: usize) -> Vec<Holder> {
        self.lock().get(volume).cloned().unwrap_or_default()
    }

    /// Takes all of `wanted` (volume index and holder) for one session, or none.
    pub fn take(self: &Arc<Self>, session_id: u64, wanted: Vec<(usize, Holder)>) -> Result<Hold, Box<Held>> {
        let mut holders = self.lock();
        for (volume, holder) in &wanted {
            if let Some(other) =
                holders[*volume].iter().find(|other| !holder.access.lives_beside(other.access))
            {
                return Err(Box::new(Held { volume: *volume, by: other.clone() }));
            }
        }
        for (volume, holder) in wanted {
            holders[volume].push(holder);
        }
        Ok(Hold { volumes: Arc::clone(self), session_id })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Holder>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for holders in self.volumes.lock().iter_mut() {
            holders.retain(|holder| holder.session_id != self.session_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::AllowList;
    use crate::config::{At, VolumeSource};

    fn volumes() -> Arc<Volumes> {
        let volume = |name: &str| Volume {
            section: VolumeSection {
                name: At::default_value(name.to_owned()),
                source: VolumeSource::Null { bytes: 4096, block_bytes: 512 },
                engine: At::default_value("main".to_owned()),
                read_only: false,
                allow: AllowList::default(),
            },
            target: Arc::new(Target::null(4096, 512)),
            engine: 0,
            id: VolumeId(0),
        };
        Arc::new(Volumes::new(vec![volume("a"), volume("b")]))
    }

    fn holder(session_id: u64, access: Access) -> Holder {
        Holder { session_id, client_name: format!("client-{session_id}"), pid: 1, uid: 2, access }
    }

    #[test]
    fn a_second_writer_learns_who_holds_it_until_the_first_ends() {
        let volumes = volumes();
        let first = volumes.take(1, vec![(0, holder(1, Access::ReadWrite))]).expect("free");
        let reader =
            volumes.take(2, vec![(0, holder(2, Access::ReadOnly))]).expect("readers live beside writers");
        let held = volumes.take(3, vec![(0, holder(3, Access::ReadWriteShared))]).expect_err("held");
        assert_eq!(*held, Held { volume: 0, by: holder(1, Access::ReadWrite) });
        assert_eq!(volumes.holders(0).len(), 2);
        drop(first);
        let _shared = volumes.take(3, vec![(0, holder(3, Access::ReadWriteShared))]).expect("free again");
        let _other = volumes.take(4, vec![(0, holder(4, Access::ReadWriteShared))]).expect("shared");
        drop(reader);
        assert_eq!(volumes.holders(0).iter().map(|holder| holder.session_id).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn all_or_nothing() {
        let volumes = volumes();
        let _first = volumes.take(1, vec![(1, holder(1, Access::ReadWrite))]).expect("free");
        let both = vec![(0, holder(2, Access::ReadWrite)), (1, holder(2, Access::ReadWrite))];
        assert_eq!(volumes.take(2, both).expect_err("b is held").volume, 1);
        assert!(volumes.holders(0).is_empty(), "a was not taken either");
    }
}
