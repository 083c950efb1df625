//! What was measured, and what follows from it.

use super::args::Peer;
use super::statistics::{Interval, Spread, median};

/// A round in which other processes used more than this part of the machine says little.
pub const OTHER_LOAD_MAX: f64 = 0.12;
/// With more than this part of the rounds above it, so does the median.
const NOISY_ROUNDS_MAX: f64 = 0.25;

/// One round of ferrio or of a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    pub iops: f64,
    pub mib_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// CPU time per request. Microseconds.
    pub client_cpu_us: f64,
    /// The same of the daemon; `None`: it is not to be seen from here.
    pub daemon_cpu_us: Option<f64>,
    /// Context switches per request, of clients and daemon.
    pub switches: f64,
    /// Part of the machine's CPU time that others used.
    pub other_load: f64,
}

/// A number of a round, and what it is called.
pub struct Metric {
    /// In JSON.
    pub key: &'static str,
    /// In the table.
    pub label: &'static str,
    pub of: fn(&Round) -> Option<f64>,
}

/// All of them, in the order of the report.
pub const METRICS: [Metric; 10] = [
    Metric { key: "iops", label: "IOPS", of: |round| Some(round.iops) },
    Metric { key: "mib_s", label: "MiB/s", of: |round| Some(round.mib_s) },
    Metric { key: "p50_us", label: "p50, us", of: |round| Some(round.p50_us) },
    Metric { key: "p99_us", label: "p99, us", of: |round| Some(round.p99_us) },
    Metric { key: "p999_us", label: "p99.9, us", of: |round| Some(round.p999_us) },
    Metric { key: "max_us", label: "max, us", of: |round| Some(round.max_us) },
    Metric {
        key: "client_cpu_us_per_io",
        label: "CPU of clients, us/IO",
        of: |round| Some(round.client_cpu_us),
    },
    Metric { key: "daemon_cpu_us_per_io", label: "CPU of ferriod, us/IO", of: |round| round.daemon_cpu_us },
    Metric { key: "cpu_us_per_io", label: "CPU in all, us/IO", of: Round::cpu_us },
    Metric { key: "switches_per_io", label: "context switches/IO", of: |round| Some(round.switches) },
];

impl Round {
    fn cpu_us(&self) -> Option<f64> {
        self.daemon_cpu_us.map(|daemon| self.client_cpu_us + daemon)
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Results {
    /// In the order in which they were; `None` is ferrio.
    pub rounds: Vec<(Option<Peer>, Round)>,
    /// Rounds of ferrio beside idle sessions, each with the one before it, without them.
    pub beside_idle: Vec<(Round, Round)>,
    /// Round trips of a cache line. Nanoseconds.
    pub ping_pong: Vec<f64>,
    pub ping_pong_cpus: Option<[u32; 2]>,
    pub verified_blocks: Option<u64>,
    pub warnings: Vec<String>,
    pub cpus: usize,
}

impl Default for Results {
    fn default() -> Self {
        Results {
            rounds: Vec::new(),
            beside_idle: Vec::new(),
            ping_pong: Vec::new(),
            ping_pong_cpus: None,
            verified_blocks: None,
            warnings: Vec::new(),
            cpus: online_cpus(),
        }
    }
}

/// One of two divided by the other, as the median of neighbouring rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quotient {
    pub pairs: usize,
    pub throughput: f64,
    pub throughput_ci: Interval,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// `None`: the daemon's CPU time is not to be seen from here.
    pub cpu_per_io: Option<f64>,
}

/// Ferrio divided by a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    pub against: Peer,
    pub quotient: Quotient,
}

impl Quotient {
    /// `None`: there are no pairs.
    fn of(pairs: &[(Round, Round)]) -> Option<Quotient> {
        let quotients = |of: fn(&Round) -> f64| pairs.iter().map(move |(one, other)| of(one) / of(other));
        let cpu: Option<Vec<f64>> =
            pairs.iter().map(|(one, other)| Some(one.cpu_us()? / other.cpu_us()?)).collect();
        Some(Quotient {
            pairs: pairs.len(),
            throughput: median(quotients(|round| round.iops)),
            throughput_ci: Interval::of(quotients(|round| round.iops))?,
            p50: median(quotients(|round| round.p50_us)),
            p99: median(quotients(|round| round.p99_us)),
            p999: median(quotients(|round| round.p999_us)),
            cpu_per_io: cpu.map(median),
        })
    }
}

/// How much others used the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    pub spread: Spread,
    pub rounds: usize,
    pub rounds_above: usize,
    pub too_noisy: bool,
}

impl Results {
    /// Takes a warning, once.
    pub fn warn(&mut self, what: String) {
        if !self.warnings.contains(&what) {
            self.warnings.push(what);
        }
    }

    /// Ferrio first, then the peers, in the order in which they were measured first.
    pub fn engines(&self) -> Vec<Option<Peer>> {
        let mut engines = Vec::new();
        for (who, _) in &self.rounds {
            if !engines.contains(who) {
                engines.push(*who);
            }
        }
        engines
    }

    pub fn of(&self, who: Option<Peer>) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |(other, _)| *other == who).map(|(_, round)| round)
    }

    /// One for each peer.
    pub fn ratios(&self) -> Vec<Ratio> {
        self.engines().into_iter().flatten().filter_map(|peer| self.ratio(peer)).collect()
    }

    /// Each round of the peer with the round of ferrio right before it.
    fn ratio(&self, against: Peer) -> Option<Ratio> {
        let pairs: Vec<(Round, Round)> = self
            .rounds
            .windows(2)
            .filter(|pair| pair[0].0.is_none() && pair[1].0 == Some(against))
            .map(|pair| (pair[0].1, pair[1].1))
            .collect();
        Some(Ratio { against, quotient: Quotient::of(&pairs)? })
    }

    /// Ferrio beside idle sessions, divided by ferrio without.
    pub fn beside_idle(&self) -> Option<Quotient> {
        Quotient::of(&self.beside_idle)
    }

    /// `None`: nothing was measured.
    pub fn noise(&self) -> Option<Noise> {
        let beside = self.beside_idle.iter().map(|(beside, _)| beside);
        let rounds = || self.rounds.iter().map(|(_, round)| round).chain(beside.clone());
        let loads = || rounds().map(|round| round.other_load);
        let rounds_above = loads().filter(|&load| load > OTHER_LOAD_MAX).count();
        let too_noisy = rounds_above as f64 > NOISY_ROUNDS_MAX * rounds().count() as f64;
        Some(Noise { spread: Spread::of(loads())?, rounds: rounds().count(), rounds_above, too_noisy })
    }

    /// Round trip of a cache line, and how often it fits into ferrio's median latency.
    pub fn ping_pong(&self) -> Option<(Spread, f64)> {
        let trips = Spread::of(self.ping_pong.iter().copied())?;
        let p50_ns = median(self.of(None).map(|round| round.p50_us)) * 1e3;
        Some((trips, p50_ns / trips.median))
    }
}

/// CPUs of the machine, whether this process may use them or not.
fn online_cpus() -> usize {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(is_cpu).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn round(iops: f64, p50_us: f64) -> Round {
        Round {
            iops,
            mib_s: iops / 256.0,
            p50_us,
            p99_us: 2.0 * p50_us,
            p999_us: 4.0 * p50_us,
            max_us: 1000.0,
            client_cpu_us: 1.0,
            daemon_cpu_us: Some(3.0),
            switches: 0.5,
            other_load: 0.01,
        }
    }

    #[test]
    fn neighbours_are_compared() {
        let (a, b) = (Some(Peer::IoUring), Some(Peer::Libaio));
        let mut results = Results::default();
        for drift in [1.0, 2.0, 10.0] {
            results.rounds.extend([
                (None, round(100.0 * drift, 10.0)),
                (a, Round { daemon_cpu_us: Some(0.0), ..round(50.0 * drift, 20.0) }),
                (None, round(100.0 * drift, 10.0)),
                (b, round(200.0 * drift, 5.0)),
            ]);
        }
        assert_eq!(results.engines(), [None, a, b]);
        assert_eq!(results.of(None).count(), 6);
        let ratios = results.ratios();
        assert_eq!((ratios[0].against, ratios[0].quotient.pairs), (Peer::IoUring, 3));
        let [first, second] = [ratios[0].quotient, ratios[1].quotient];
        assert_eq!((first.throughput, first.p50, first.cpu_per_io), (2.0, 0.5, Some(4.0)));
        assert_eq!((first.throughput_ci.low, first.throughput_ci.high), (2.0, 2.0));
        assert_eq!((second.throughput, second.p999), (0.5, 2.0));
    }

    #[test]
    fn a_daemon_that_is_not_seen_has_no_cpu_ratio() {
        let mut results = Results::default();
        results.rounds.push((None, Round { daemon_cpu_us: None, ..round(1.0, 1.0) }));
        results.rounds.push((Some(Peer::Psync), round(1.0, 1.0)));
        assert_eq!(results.ratios()[0].quotient.cpu_per_io, None);
    }

    #[test]
    fn rounds_beside_idle_sessions_are_compared_with_those_without() {
        let mut results = Results::default();
        assert_eq!(results.beside_idle(), None);
        results.beside_idle.extend([(round(90.0, 11.0), round(100.0, 10.0)); 3]);
        let quotient = results.beside_idle().unwrap();
        assert_eq!((quotient.pairs, quotient.throughput, quotient.p50), (3, 0.9, 1.1));
    }

    #[test]
    fn noise_is_judged_by_the_rounds_above_the_limit() {
        let mut results = Results::default();
        assert_eq!(results.noise(), None);
        for other_load in [0.0, 0.0, 0.0, 0.5] {
            results.rounds.push((None, Round { other_load, ..round(1.0, 1.0) }));
        }
        let noise = results.noise().unwrap();
        assert_eq!((noise.rounds_above, noise.too_noisy, noise.spread.max), (1, false, 0.5));
        results.rounds.push((None, Round { other_load: 0.13, ..round(1.0, 1.0) }));
        assert!(results.noise().unwrap().too_noisy);
    }

    #[test]
    fn ping_pong_divides_the_median() {
        let mut results = Results { ping_pong: vec![90.0, 100.0, 200.0], ..Results::default() };
        results.rounds.push((None, round(1.0, 0.3)));
        let (trips, ratio) = results.ping_pong().unwrap();
        assert_eq!(trips.median, 100.0);
        assert!((ratio - 3.0).abs() < 1e-9);
        assert!(online_cpus() >= 1);
    }
}
