//! Names, stages and holders.

use super::*;
use crate::acl::AllowList;
use crate::config::{At, VolumeSource};

/// A section of a null volume.
pub fn section(name: &str, engine: &str, read_only: bool, allow: AllowList) -> VolumeSection {
    VolumeSection {
        name: At::default_value(name.to_owned()),
        source: VolumeSource::Null { bytes: 8192, block_bytes: 512 },
        engine: At::default_value(engine.to_owned()),
        read_only,
        allow,
        limit: Limit::default(),
        faults: ferrio_driver::FaultPlan::default(),
    }
}

/// Puts a null volume into service, without an engine behind it.
pub fn serve(volumes: &Arc<Volumes>, section: VolumeSection, engine: usize) -> Volume {
    let reservation = volumes.reserve(section, engine, true).expect("a free name");
    reservation
        .serve(Served { target: Arc::new(Target::null(8192, 512)), id: VolumeId(7) })
        .expect("reserved")
}

fn volumes() -> (Arc<Volumes>, VolumeKey, VolumeKey) {
    let volumes = Arc::new(Volumes::default());
    let [a, b] =
        ["a", "b"].map(|name| serve(&volumes, section(name, "main", false, AllowList::default()), 0).key);
    (volumes, a, b)
}

fn holder(session_id: u64, access: Access) -> Holder {
    Holder { session_id, client_name: format!("client-{session_id}"), pid: 1, uid: 2, access }
}

fn holders(volumes: &Volumes, key: VolumeKey) -> Vec<u64> {
    volumes.get(key).expect("there").holders.iter().map(|holder| holder.session_id).collect()
}

#[test]
fn a_second_writer_learns_who_holds_it_until_the_first_ends() {
    let (volumes, a, _) = volumes();
    let first = volumes.take(1, vec![(a, holder(1, Access::ReadWrite))]).expect("free");
    let reader =
        volumes.take(2, vec![(a, holder(2, Access::ReadOnly))]).expect("readers live beside writers");
    let held = volumes.take(3, vec![(a, holder(3, Access::ReadWriteShared))]).expect_err("held");
    assert_eq!(*held, Held { wanted: 0, by: holder(1, Access::ReadWrite) });
    assert_eq!(holders(&volumes, a), [1, 2]);
    drop(first);
    let _shared = volumes.take(3, vec![(a, holder(3, Access::ReadWriteShared))]).expect("free again");
    let _other = volumes.take(4, vec![(a, holder(4, Access::ReadWriteShared))]).expect("shared");
    drop(reader);
    assert_eq!(holders(&volumes, a), [3, 4]);
}

#[test]
fn all_or_nothing() {
    let (volumes, a, b) = volumes();
    let _first = volumes.take(1, vec![(b, holder(1, Access::ReadWrite))]).expect("free");
    let both = vec![(a, holder(2, Access::ReadWrite)), (b, holder(2, Access::ReadWrite))];
    assert_eq!(volumes.take(2, both).expect_err("b is held").wanted, 1);
    assert!(holders(&volumes, a).is_empty(), "a was not taken either");
}

#[tokio::test]
async fn a_name_is_free_again_once_its_volume_is_gone() {
    let (volumes, a, b) = volumes();
    let free = |name| volumes.reserve(section(name, "main", false, AllowList::default()), 0, false);
    let hold = volumes.take(1, vec![(a, holder(1, Access::ReadWrite)), (b, holder(1, Access::ReadWrite))]);
    let _hold = hold.expect("free");

    let taken = free("a").expect_err("in service").to_string();
    assert!(taken.contains("\"a\" is in service"), "{taken}");
    let mut removal = volumes.start_removal("a").expect("in service");
    assert_eq!((removal.key, removal.id, removal.first), (a, VolumeId(7), true));
    assert!(!volumes.start_removal("a").expect("again").first, "the engine is told once");
    let removing = volumes.serving("a").expect_err("takes nothing more").to_string();
    assert!(removing.contains("being removed") && removing.contains("volume list"), "{removing}");
    assert!(free("a").expect_err("not gone yet").to_string().contains("being removed"));
    assert!(volumes.start_resize("a").expect_err("not any more").to_string().contains("being removed"));

    volumes.forget(a);
    removal.gone.changed().await.expect_err("its end is told");
    let unknown = volumes.serving("a").expect_err("gone").to_string();
    assert!(unknown.contains("\"a\"") && unknown.ends_with("volumes of this daemon: b"), "{unknown}");
    let again = serve(&volumes, section("a", "main", false, AllowList::default()), 0);
    assert!(again.key != a && again.holders.is_empty(), "the session has the old one, not this");
    assert_eq!(holders(&volumes, b), [1], "and keeps its other volume");
}

#[test]
fn a_reservation_is_given_back_unless_it_serves() {
    let (volumes, _, _) = volumes();
    let reserve = |name: &str| volumes.reserve(section(name, "main", false, AllowList::default()), 0, false);
    let opening = reserve("c").expect("free");
    assert!(reserve("c").expect_err("taken").to_string().contains("being opened"));
    assert!(volumes.start_removal("c").expect_err("not yet").to_string().contains("being opened"));
    let others: Vec<_> = (1..OPENING_MAX).map(|n| reserve(&format!("c{n}")).expect("room")).collect();
    let many = reserve("d").expect_err("too many").to_string();
    assert!(many.contains(&format!("{OPENING_MAX} volumes are being opened")), "{many}");
    drop((opening, others));
    assert_eq!(volumes.list().len(), 2);
    reserve("c").expect("free again");
}

#[test]
fn one_change_of_size_at_a_time() {
    let (volumes, a, _) = volumes();
    let (_, _, resizing) = volumes.start_resize("a").expect("in service");
    assert!(volumes.start_resize("a").expect_err("one is under way").to_string().contains("being resized"));
    volumes.set_size(a, 4096);
    drop(resizing);
    let (volume, ..) = volumes.start_resize("a").expect("again");
    assert_eq!(volume.size_bytes, 4096);
}
