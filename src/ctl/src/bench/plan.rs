//! What is measured, as it can be: the options held against the daemon's answers.

use std::ops::Range;
use std::path::PathBuf;

use ferrio_api::v1::admin_client::AdminClient;
use ferrio_api::v1::engines_client::EnginesClient;
use ferrio_api::v1::volumes_client::VolumesClient;
use ferrio_api::v1::{self, VolumeKind};
use ferrio_driver::direct::DirectFile;
use tonic::transport::Channel;

use super::args::{Against, Args, FLIGHT_BYTES_MAX, Peer, Rw, Wait};
use crate::error::CtlError;

/// Threads of one client at most.
const THREADS_MAX: u32 = 256;

/// What the daemon says of itself and of the volume.
#[derive(Clone, Debug)]
pub struct Scene {
    pub daemon: v1::InfoResponse,
    pub engine: v1::Engine,
    pub volume: v1::Volume,
}

/// A measurement that can be done.
#[derive(Clone, Debug)]
pub struct Plan {
    pub args: Args,
    pub scene: Scene,
    pub socket: PathBuf,
    pub peers: Vec<Peer>,
    /// The volume's file, for the peers.
    pub target: PathBuf,
    /// How much of the volume is used: a multiple of the request length.
    pub bytes: u64,
}

impl Scene {
    /// Asks the daemon.
    pub async fn look(channel: Channel, volume: &str) -> Result<Scene, CtlError> {
        let daemon = AdminClient::new(channel.clone()).info(v1::InfoRequest {}).await?.into_inner();
        let engines = EnginesClient::new(channel.clone()).list(v1::ListEnginesRequest {}).await?.into_inner();
        let volumes = VolumesClient::new(channel).list(v1::ListVolumesRequest {}).await?.into_inner().volumes;
        let Some(found) = volumes.iter().find(|found| found.name == volume) else {
            let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
            return Err(usage(format!(
                "there is no volume {volume:?}; the daemon has: {}",
                names.join(", ")
            )));
        };
        let engine = engines.engines.into_iter().find(|engine| engine.name == found.engine);
        Ok(Scene { daemon, engine: engine.unwrap_or_default(), volume: found.clone() })
    }

    pub fn has_file(&self) -> bool {
        !matches!(self.volume.kind(), VolumeKind::Null | VolumeKind::Memory)
    }

    /// The volume keeps nothing.
    pub fn is_null(&self) -> bool {
        self.volume.kind() == VolumeKind::Null
    }
}

impl Plan {
    /// Or why it cannot be done.
    pub fn make(args: Args, scene: Scene, socket: PathBuf) -> Result<Plan, CtlError> {
        let peers = peers(&args, &scene)?;
        let target = args.target.clone().unwrap_or_else(|| scene.volume.path.clone().into());
        let bytes = args.size.unwrap_or(u64::MAX).min(scene.volume.size_bytes) / args.bs * args.bs;
        let plan = Plan { args, scene, socket, peers, target, bytes };
        plan.check_request()?;
        plan.check_room()?;
        if !plan.peers.iter().all(|peer| peer.is_ferrio()) {
            plan.check_target()?;
        }
        Ok(plan)
    }

    /// The blocks, in requests, that a client reads and writes.
    pub fn area(&self, client: u32) -> Range<u64> {
        part(&(0..self.bytes / self.args.bs), self.args.rw, client, self.args.clients)
    }

    /// The data of the volume is lost.
    pub fn destroys(&self) -> bool {
        !self.scene.is_null() && (self.args.rw.writes() || self.args.verify)
    }

    fn check_request(&self) -> Result<(), CtlError> {
        let (args, volume) = (&self.args, &self.scene.volume);
        let block = u64::from(volume.block_bytes.max(1));
        if !args.bs.is_multiple_of(block) {
            return Err(usage(format!(
                "--bs {} is not a multiple of {block}, the block of volume {}",
                args.bs, volume.name
            )));
        }
        let bytes = args.bs.saturating_mul(args.iodepth.into());
        if bytes > FLIGHT_BYTES_MAX {
            return Err(usage(format!(
                "--bs times --iodepth is {bytes} bytes, and a client has at most {FLIGHT_BYTES_MAX} in flight: lower one"
            )));
        }
        if volume.read_only && (args.rw.writes() || args.verify) {
            return Err(usage(format!("volume {} is read-only: use --rw randread or read", volume.name)));
        }
        if args.verify && self.scene.is_null() {
            return Err(usage(format!(
                "volume {} is a null volume, which keeps nothing: there is nothing to verify",
                volume.name
            )));
        }
        if self.peers.contains(&Peer::Psync) && args.iodepth > THREADS_MAX {
            return Err(usage(format!(
                "psync has a thread for each request in flight, at most {THREADS_MAX}: lower --iodepth {}",
                args.iodepth
            )));
        }
        Ok(())
    }

    /// Every request finds a place; with --verify, beside all other writes.
    fn check_room(&self) -> Result<(), CtlError> {
        let Args { bs, iodepth, clients, verify, rw, .. } = self.args;
        let most = u64::from(if verify || self.peers.contains(&Peer::Psync) { 2 * iodepth } else { 1 });
        let needed = if rw == Rw::RandRead { 1 } else { most * u64::from(clients) };
        let blocks = self.bytes / bs;
        if blocks < needed {
            return Err(usage(format!(
                "volume {} has room for {blocks} requests of {bs} bytes, and {needed} are needed: lower --bs, --iodepth \
                 or --clients, or raise --size",
                self.scene.volume.name
            )));
        }
        Ok(())
    }

    /// The peers will be able to open it.
    fn check_target(&self) -> Result<(), CtlError> {
        let cannot = |error: std::io::Error| {
            let fix = "the peers do the I/O themselves: run as a user who may, name it with --target, or use --against none";
            usage(format!("cannot open {}: {error}; {fix}", self.target.display()))
        };
        let file = DirectFile::open(&self.target, self.args.rw.writes(), self.scene.volume.direct);
        let bytes = file.and_then(|file| file.size_bytes()).map_err(cannot)?;
        if bytes < self.bytes {
            let path = self.target.display();
            return Err(usage(format!(
                "{path} has {bytes} bytes, fewer than the {} that are used of volume {}: is it the volume's file?",
                self.bytes, self.scene.volume.name
            )));
        }
        Ok(())
    }
}

fn peers(args: &Args, scene: &Scene) -> Result<Vec<Peer>, CtlError> {
    if args.idle_sessions.is_some() && args.against.iter().any(|against| *against != Against::None) {
        return Err(usage("--idle-sessions compares ferrio with itself: leave --against out".to_owned()));
    }
    let asked: Vec<Peer> = args.against.iter().filter_map(|against| against.peer()).collect();
    if args.against.contains(&Against::None) && !asked.is_empty() {
        return Err(usage("--against none stands alone".to_owned()));
    }
    if (1..asked.len()).any(|index| asked[..index].contains(&asked[index])) {
        return Err(usage("--against names a peer twice".to_owned()));
    }
    if args.idle_sessions.is_some() {
        return Ok(Vec::new());
    }
    if !scene.has_file() {
        if !asked.iter().all(|peer| peer.is_ferrio()) || args.target.is_some() {
            let name = &scene.volume.name;
            return Err(usage(format!(
                "volume {name} is {}: it has no file, so there is nobody to compare with; leave --against and --target \
                 out",
                if scene.is_null() { "a null volume" } else { "in memory" }
            )));
        }
        return Ok(asked);
    }
    Ok(match args.wait {
        _ if !args.against.is_empty() => asked,
        Wait::Poll => vec![Peer::IoUringPoll],
        Wait::Adaptive | Wait::Sleep => vec![Peer::IoUring],
    })
}

/// What is left of `area` for one of `count`: all of it for those that only read, from anywhere.
pub fn part(area: &Range<u64>, rw: Rw, index: u32, count: u32) -> Range<u64> {
    if rw == Rw::RandRead {
        return area.clone();
    }
    let length = u128::from(area.end - area.start);
    let border = |index: u32| area.start + (length * u128::from(index) / u128::from(count)) as u64;
    border(index)..border(index + 1)
}

fn usage(what: String) -> CtlError {
    CtlError::Usage(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn scene(kind: VolumeKind) -> Scene {
        let volume = v1::Volume {
            name: "v".into(),
            kind: kind.into(),
            size_bytes: 1 << 20,
            block_bytes: 512,
            path: if kind == VolumeKind::Null { String::new() } else { "/dev/zero".into() },
            ..v1::Volume::default()
        };
        Scene { daemon: v1::InfoResponse::default(), engine: v1::Engine::default(), volume }
    }

    fn plan(kind: VolumeKind, options: &str) -> Result<Plan, String> {
        let line = ["bench", "--volume", "v"].into_iter().chain(options.split_whitespace());
        let args = Line::try_parse_from(line).map_err(|error| error.to_string())?.args;
        Plan::make(args, scene(kind), "/s".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn peers_follow_the_way_of_waiting() {
        let peers = |options: &str| {
            let line = ["bench", "--volume", "v"].into_iter().chain(options.split_whitespace());
            super::peers(&Line::parse_from(line).args, &scene(VolumeKind::File)).unwrap()
        };
        assert_eq!(peers(""), [Peer::IoUring]);
        assert_eq!(peers("--wait poll"), [Peer::IoUringPoll]);
        assert_eq!(peers("--wait poll --against libaio,psync"), [Peer::Libaio, Peer::Psync]);
        assert_eq!(peers("--against none"), []);
        assert_eq!(peers("--against unmerged"), [Peer::Unmerged]);
        assert_eq!(peers("--idle-sessions 10"), []);
        assert_eq!(plan(VolumeKind::Null, "").unwrap().peers, []);
        assert_eq!(plan(VolumeKind::Null, "--against unmerged").unwrap().peers, [Peer::Unmerged]);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let told = |kind, options: &str, words: &str| {
            let error = plan(kind, options).unwrap_err();
            assert!(error.contains(words), "{options}: {error}");
        };
        let (file, null) = (VolumeKind::File, VolumeKind::Null);
        told(null, "--against io_uring", "null volume");
        told(null, "--verify", "nothing to verify");
        told(file, "--against io_uring,none", "stands alone");
        told(file, "--against psync,psync", "twice");
        told(file, "--idle-sessions 5 --against psync", "with itself");
        told(file, "--bs 1000 --against none", "multiple of 512");
        told(file, "--bs 1m --iodepth 2048 --against none", "1073741824");
        told(file, "--rw write --clients 32 --bs 64k --against none", "room for 16 requests");
        told(file, "--rw randrw --verify --iodepth 256 --against none", "512 are needed");
        told(file, "--bs 2m --against none", "room for 0 requests");
        told(file, "--iodepth 512 --against psync", "at most 256");
        told(file, "--against io_uring --target /no/such", "/no/such");
        told(file, "--skip-fill --verify", "cannot be used with");
        told(file, "--against fio", "possible values");
    }

    #[test]
    fn writers_have_parts_of_their_own() {
        let plan = plan(VolumeKind::Null, "--rw randwrite --clients 3").unwrap();
        assert_eq!([plan.area(0), plan.area(1), plan.area(2)], [0..85, 85..170, 170..256]);
        let plan = Plan { args: Args { rw: Rw::RandRead, ..plan.args.clone() }, ..plan };
        assert_eq!(plan.area(2), 0..256);
    }
}
