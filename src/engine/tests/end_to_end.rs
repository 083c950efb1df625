//! The whole engine under any mixture of clients, settings, faults and deaths, on made-up time and over a driver that answers
//! in any order. A failure prints its seed; to run that one alone:
//! `FERRIO_SIM_SEED=n cargo test -p ferrio-engine --test end_to_end`. `FERRIO_SIM_SEEDS=n` runs as many.

mod common;
#[path = "common/seeds.rs"]
mod seeds;

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::mpsc::{Receiver, channel},
};

use common::{
    BLOCK, Client, Rig, done,
    puppet::{self, Puppet, Refuses},
};
use ferrio_driver::Target;
use ferrio_engine::{
    EngineError, FEATURES, LatencyGoal, Limit, MergeLimits, Rate, Scope, Split, VolumeId,
    clock::Nanos,
    inject::{Command, IoThread},
    scheduler::Setting,
};
use ferrio_shm::{
    abi::{Class, Opcode, errno, sqe_flags},
    entry::Sqe,
};

const MILLISECOND: Nanos = 1_000_000;
const RECORDS: u32 = 128;
const ENTRIES: u32 = 32;
const SESSIONS: usize = 5;
const DONE: i32 = BLOCK as i32;

thread_local! {
    static NOW: Cell<Nanos> = const { Cell::new(0) };
}

fn made_up() -> Nanos {
    NOW.get()
}

/// Every request is answered once, and no rule is broken on the way.
#[test]
fn whatever_happens_the_rules_hold() {
    seeds::each(|seed| World::new(seed).live());
}

/// What the world knows of a request.
#[derive(Clone, Debug)]
struct Known {
    sqe: Sqe,
    /// Its predecessor in its chain.
    after: Option<u64>,
    submitted_at: Nanos,
    issued: bool,
    /// What the driver was told to answer.
    told: Option<i32>,
    /// The answer, and the turn it came in.
    answer: Option<(i32, u64)>,
}

impl Known {
    fn is(&self, op: Opcode) -> bool {
        self.sqe.op == op as u8
    }

    fn has(&self, flag: u16) -> bool {
        self.sqe.flags & flag != 0
    }
}

struct Session {
    client: Client,
    /// By id, in their order.
    requests: BTreeMap<u64, Known>,
    outstanding: u32,
    /// It was told to end.
    ends: Option<Receiver<()>>,
}

struct World {
    rng: fastrand::Rng,
    rig: Rig<Puppet>,
    volumes: Vec<VolumeId>,
    sessions: Vec<Session>,
    /// Requests lie side by side, and may be joined: then a joined one is not seen when it is issued.
    merge: bool,
    /// The next request; 0 is none.
    id: u64,
    turns: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        NOW.set(1000 * MILLISECOND);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut rig = Rig::<Puppet>::new(rng.u32(1..=32), RECORDS);
        (rig.clock, rig.features, rig.merge) = (made_up, FEATURES, rng.bool());
        let volumes = (0..2).map(|_| rig.add_volume(Target::null(1 << 40, 512).into())).collect();
        let merge = rig.merge;
        Self { rng, rig, volumes, sessions: Vec::new(), merge, id: 1, turns: 0 }
    }

    fn live(mut self) {
        for _ in 0..self.rng.u32(20..150) {
            match self.rng.u32(..40) {
                0 | 1 => self.change_anything(),
                2 if self.sessions.len() < SESSIONS => self.open(),
                3 if self.rng.u32(..4) == 0 => self.close(),
                4 => {
                    let refuses = [Refuses::All, Refuses::Vectored, Refuses::Nothing];
                    puppet::refuse(refuses[self.rng.usize(..3)]);
                }
                5..16 => self.submit(),
                16..28 => self.tell(),
                _ => {
                    NOW.set(NOW.get() + self.rng.u64(..3 * MILLISECOND));
                    self.turn();
                }
            }
        }
        self.drain();
    }

    fn ask(
        &mut self,
        ask: impl FnOnce(&mut dyn IoThread) -> Result<(), EngineError> + Send + 'static,
    ) -> Result<(), EngineError> {
        let (sender, receiver) = channel();
        let ask = Box::new(move |thread: &mut dyn IoThread| sender.send(ask(thread)).unwrap());
        assert!(self.rig.parts.injector.send(Command::Run(ask)).is_ok());
        self.turn();
        receiver.try_recv().unwrap()
    }

    fn change_anything(&mut self) {
        let rng = &mut self.rng;
        let session_id = match self.sessions.is_empty() {
            true => 1,
            false => self.sessions[rng.usize(..self.sessions.len())].client.id,
        };
        let mut rate = |least: u64| {
            rng.bool()
                .then(|| Rate { per_second: rng.u64(least..least * 1000), burst: rng.bool().then_some(1) })
        };
        let iops = Split { read: rate(100), write: rate(100), total: rate(100) };
        let bytes = Split { read: rate(1 << 20), write: None, total: rate(1 << 20) };
        let setting = match rng.u32(..9) {
            0 => Setting::Weight { session_id, weight: rng.u32(1..=1000) },
            1 => Setting::Group { session_id, group: rng.bool().then(|| "group".into()) },
            2 => Setting::Budgets([rng.u32(1..=40), rng.u32(1..=40), rng.u32(1..=40)]),
            3 => Setting::Latency(match rng.u32(..3) {
                0 => LatencyGoal::Off,
                1 => LatencyGoal::Within(rng.u64(1000..10 * MILLISECOND)),
                _ => LatencyGoal::Relative(rng.u32(100..400)),
            }),
            4 => {
                let limits = MergeLimits { bytes_max: rng.u32(0..1 << 17), segments_max: rng.u32(1..=32) };
                return self.ask(move |thread| thread.set_merge(limits)).unwrap();
            }
            _ => {
                let scope = match rng.u32(..3) {
                    0 => Scope::Volume(self.volumes[rng.usize(..2)]),
                    1 => Scope::Session(session_id),
                    _ => Scope::Group("group".into()),
                };
                let limit = if rng.u32(..3) == 0 { Limit::default() } else { Limit { iops, bytes } };
                Setting::Limit { scope, limit }
            }
        };
        let of_session = match &setting {
            Setting::Weight { .. } | Setting::Group { .. } => true,
            Setting::Limit { scope, .. } => matches!(scope, Scope::Session(_)),
            _ => false,
        };
        let open =
            self.sessions.iter().any(|session| session.client.id == session_id && session.ends.is_none());
        let outcome = self.ask(move |thread| thread.set_schedule(setting));
        assert!(outcome.is_ok() || of_session && !open, "{outcome:?}");
    }

    // ---- clients

    fn open(&mut self) {
        let client = self.rig.open_on(&self.volumes, ENTRIES).unwrap();
        self.look();
        self.sessions.push(Session { client, requests: BTreeMap::new(), outstanding: 0, ends: None });
    }

    fn close(&mut self) {
        let open: Vec<usize> =
            (0..self.sessions.len()).filter(|n| self.sessions[*n].ends.is_none()).collect();
        let Some(place) = open.get(self.rng.usize(..open.len().max(1))) else { return };
        let (done, ended) = done();
        let session_id = self.sessions[*place].client.id;
        self.sessions[*place].ends = Some(ended);
        assert!(self.rig.parts.injector.send(Command::CloseSession { session_id, done }).is_ok());
        self.turn();
    }

    /// Chains of one or more requests, published together.
    fn submit(&mut self) {
        if self.sessions.is_empty() {
            return;
        }
        let place = self.rng.usize(..self.sessions.len());
        if self.sessions[place].ends.is_some() {
            return;
        }
        for _ in 0..self.rng.u32(1..6) {
            let length = if self.rng.u32(..4) == 0 { self.rng.u32(2..6) } else { 1 };
            let session = &mut self.sessions[place];
            if session.outstanding + length > ENTRIES || session.client.sq.room() < length {
                break;
            }
            let mut after = None;
            for member in 0..length {
                let link = if member + 1 < length { sqe_flags::LINK } else { 0 };
                let sqe = self.sqe(place, link);
                let session = &mut self.sessions[place];
                session.client.sq.push(&sqe).unwrap();
                session.outstanding += 1;
                let (submitted_at, issued) = (NOW.get(), false);
                let known = Known { sqe, after, submitted_at, issued, told: None, answer: None };
                session.requests.insert(self.id, known);
                after = Some(self.id);
                self.id += 1;
            }
        }
        self.sessions[place].client.publish();
    }

    fn sqe(&mut self, place: usize, link: u16) -> Sqe {
        let rng = &mut self.rng;
        let barrier = if rng.u32(..10) == 0 { sqe_flags::BARRIER } else { 0 };
        let step = if self.merge { 1 } else { 2 };
        let sqe = Sqe {
            user_data: self.id,
            op: if rng.bool() { Opcode::Read } else { Opcode::Write } as u8,
            class: if rng.u32(..4) == 0 { Class::Prio } else { Class::Default } as u8,
            flags: link | barrier,
            volume: rng.u16(..2),
            offset: self.id * step * BLOCK,
            length: BLOCK,
            timeout_us: if rng.u32(..5) == 0 { rng.u32(1..20_000) } else { 0 },
            ..Sqe::default()
        };
        let plain = Sqe { offset: 0, length: 0, ..sqe };
        match rng.u32(..30) {
            0 => Sqe { op: Opcode::Nop as u8, volume: 0, ..plain },
            1 => Sqe { op: Opcode::Flush as u8, ..plain },
            2 => Sqe { op: 99, ..plain },
            3 | 4 => {
                let requests = &self.sessions[place].requests;
                let back = rng.u64(..8);
                let arg = requests.keys().rev().nth(back as usize).copied().unwrap_or(0);
                Sqe { op: Opcode::Cancel as u8, volume: 0, class: 0, timeout_us: 0, arg, ..plain }
            }
            _ => sqe,
        }
    }

    // ---- the driver

    fn known(&mut self, id: u64) -> Option<&mut Known> {
        self.sessions.iter_mut().find_map(|session| session.requests.get_mut(&id))
    }

    fn id_at(&self, offset: u64) -> u64 {
        offset / BLOCK / if self.merge { 1 } else { 2 }
    }

    /// Answers some of what is in flight, in any order.
    fn tell(&mut self) {
        for _ in 0..self.rng.u32(1..6) {
            let in_flight = puppet::in_flight();
            if in_flight.is_empty() {
                return;
            }
            let place = self.rng.usize(..in_flight.len());
            let well = self.rng.u32(..12) > 0;
            self.tell_of(place, in_flight[place], well);
        }
    }

    fn tell_of(&mut self, place: usize, offset: u64, well: bool) {
        puppet::answer(place, (!well).then_some(errno::EIO));
        let id = self.id_at(offset);
        if let Some(known) = self.known(id) {
            known.told = Some(if well { DONE } else { -errno::EIO });
        }
    }

    // ---- the rules

    fn turn(&mut self) {
        self.rig.turn();
        self.look();
    }

    /// After each turn of the engine.
    fn look(&mut self) {
        self.turns += 1;
        let issued: Vec<u64> =
            puppet::take_submitted().into_iter().map(|offset| self.id_at(offset)).collect();
        for place in 0..self.sessions.len() {
            self.reap(place);
        }
        for id in issued {
            self.check_issue(id);
        }
        self.sessions.retain(|session| session.ends.as_ref().is_none_or(|ended| ended.try_recv().is_err()));
    }

    fn reap(&mut self, place: usize) {
        let session = &mut self.sessions[place];
        assert_eq!(*session.client.fault.lock().unwrap(), None);
        if session.ends.is_some() {
            return;
        }
        let mut cqes = Vec::new();
        session.client.reap(&mut cqes);
        for cqe in cqes {
            let session = &mut self.sessions[place];
            session.outstanding -= 1;
            let known = session.requests.get_mut(&cqe.user_data).unwrap_or_else(|| panic!("{cqe:?}"));
            assert_eq!(known.answer, None, "answered twice: {cqe:?}");
            known.answer = Some((cqe.result, self.turns));
            self.check_answer(place, cqe.user_data, cqe.result);
        }
    }

    fn check_answer(&self, place: usize, id: u64, result: i32) {
        let requests = &self.sessions[place].requests;
        let known = &requests[&id];
        let told = || format!("{id} is answered {result}: {known:?}");
        let failed = |id: u64| requests[&id].answer.is_some_and(|(result, _)| result < 0);
        match -result {
            errno::ECANCELED => {
                let cancel = |other: &Known| other.is(Opcode::Cancel) && other.sqe.arg == id;
                let cancelled = requests.values().any(cancel);
                assert!(cancelled || known.after.is_some_and(failed), "{}", told());
                assert!(!known.issued, "{}", told());
            }
            errno::ETIMEDOUT => {
                let waited = NOW.get() - known.submitted_at;
                let timeout = u64::from(known.sqe.timeout_us) * 1000;
                assert!(timeout > 0 && waited >= timeout && !known.issued, "{} after {waited} ns", told());
            }
            errno::EINVAL => assert_eq!(known.sqe.op, 99, "{}", told()),
            errno::EALREADY | errno::ENOENT => assert!(known.is(Opcode::Cancel), "{}", told()),
            _ if known.is(Opcode::Cancel) || known.is(Opcode::Flush) || known.is(Opcode::Nop) => {}
            // A part of a joined operation was told as another, or singly.
            _ if self.merge => assert!(result == DONE || result == -errno::EIO, "{}", told()),
            _ => assert_eq!(known.told, Some(result), "{}", told()),
        }
    }

    fn check_issue(&mut self, id: u64) {
        let (turns, merge) = (self.turns, self.merge);
        let Some(session) = self.sessions.iter_mut().find(|session| session.requests.contains_key(&id))
        else {
            return;
        };
        let known = session.requests[&id].clone();
        let told = || format!("{id} is issued: {known:?}");
        // What failed together is issued again singly.
        assert!(merge || !known.issued, "{} again", told());
        let answered_before = |other: &Known| other.answer.is_some_and(|(_, turn)| turn < turns);
        assert!(!answered_before(&known), "{}", told());
        if let Some(after) = known.after {
            let before = &session.requests[&after];
            assert!(before.answer.is_some_and(|(result, _)| result >= 0), "{} before {before:?}", told());
        }
        for (other, earlier) in session.requests.range(..id) {
            let lane = |known: &Known| {
                let of_volume = ![Opcode::Nop, Opcode::Cancel].into_iter().any(|op| known.is(op));
                of_volume.then_some(known.sqe.volume)
            };
            let ordered = known.has(sqe_flags::BARRIER) || earlier.has(sqe_flags::BARRIER);
            if lane(earlier) == lane(&known) && ordered {
                let over = answered_before(earlier) || (earlier.answer.is_some() && !earlier.issued);
                assert!(over, "{} across {other}: {earlier:?}", told());
            }
        }
        session.requests.get_mut(&id).unwrap().issued = true;
    }

    // ---- the end

    /// Nobody submits any more, and the device answers: so does the engine.
    fn drain(&mut self) {
        puppet::refuse(Refuses::Nothing);
        for _ in 0..20_000 {
            for (place, offset) in puppet::in_flight().into_iter().enumerate().rev() {
                self.tell_of(place, offset, true);
            }
            NOW.set(NOW.get() + 2 * MILLISECOND);
            self.turn();
            let open = self.sessions.iter().any(|session| session.outstanding > 0 || session.ends.is_some());
            if !open && self.rig.pending() == 0 {
                break;
            }
        }
        for session in &self.sessions {
            let open = session.requests.values().find(|known| known.answer.is_none());
            assert!(open.is_none() && session.ends.is_none(), "never answered: {open:?}");
        }
        (0..3).for_each(|_| self.turn());
        assert_eq!(self.rig.parts.submitter.free_records(), RECORDS);
        assert_eq!((self.rig.pending(), puppet::in_flight().len()), (0, 0));
    }
}
