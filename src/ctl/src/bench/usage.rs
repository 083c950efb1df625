//! CPU time and context switches: of this process, of the daemon, and of the whole machine.

use std::fs;
use std::ops::{Add, Sub};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::clock::now_ns;

/// What a process used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    pub switches: u64,
}

impl Usage {
    /// Of this process, all its threads.
    pub fn of_this_process() -> Usage {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Usage::default() };
        let cpu_us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
        Usage { cpu_ns: cpu_us.cast_unsigned() * 1000, switches: switches.cast_unsigned() }
    }

    /// Of another process, by its threads, of which none ends meanwhile. `None`: it is not to be seen from here.
    pub fn of_process(pid: u32) -> Option<Usage> {
        let mut sum = Usage::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let task = task.ok()?.path();
            let Ok(schedstat) = fs::read_to_string(task.join("schedstat")) else { continue };
            sum.cpu_ns += schedstat.split_whitespace().next()?.parse::<u64>().ok()?;
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            sum.switches += status
                .lines()
                .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
                .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
                .sum::<u64>();
        }
        Some(sum)
    }
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage { cpu_ns: self.cpu_ns + other.cpu_ns, switches: self.switches + other.switches }
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, other: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns.saturating_sub(other.cpu_ns),
            switches: self.switches.saturating_sub(other.switches),
        }
    }
}

/// Everything outside of the clients, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    at_ns: u64,
    machine_ns: u64,
    own: Usage,
    daemon: Option<Usage>,
}

/// What went on between two looks.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    pub elapsed_ns: u64,
    /// CPU time of all processes on the machine.
    pub machine_ns: u64,
    /// Of this process.
    pub own: Usage,
    pub daemon: Option<Usage>,
}

impl Look {
    /// Now.
    pub fn take(daemon_pid: u32) -> Look {
        Look {
            at_ns: now_ns(),
            machine_ns: machine_ns(&fs::read_to_string("/proc/stat").unwrap_or_default()),
            own: Usage::of_this_process(),
            daemon: Usage::of_process(daemon_pid),
        }
    }

    /// From this one to a later one.
    pub fn until(&self, later: &Look) -> Between {
        Between {
            elapsed_ns: later.at_ns - self.at_ns,
            machine_ns: later.machine_ns.saturating_sub(self.machine_ns),
            own: later.own - self.own,
            daemon: later.daemon.zip(self.daemon).map(|(later, earlier)| later - earlier),
        }
    }
}

/// CPU time of processes, and what the hypervisor took. Not interrupts: those of the measured I/O are among them.
fn machine_ns(stat: &str) -> u64 {
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    let column = |index: usize| ticks.get(index).copied().unwrap_or(0);
    let (user, nice, system, steal) = (column(0), column(1), column(2), column(7));
    (user + nice + system + steal) * 1_000_000_000 / rustix::param::clock_ticks_per_second()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn busy_processes_show_in_both_accounts() {
        // Of a process of its own: in this one the threads of other tests come and go.
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let look = Look::take(busy.id());
        // For as long as it takes: on a busy machine they may get little of the CPU.
        let between = loop {
            let between = look.until(&Look::take(busy.id()));
            if between.own.cpu_ns.min(between.daemon.unwrap().cpu_ns) >= 20_000_000 {
                break between;
            }
        };
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(between.elapsed_ns > 0, "{between:?}");
        assert_eq!(Usage::of_process(u32::MAX), None);
    }

    #[test]
    fn interrupts_and_idling_are_nobodys_cpu_time() {
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(machine_ns("cpu  1 2 4 1000 1000 1000 1000 8 99 99\ncpu0 5 5 5"), 15 * tick);
        assert_eq!(machine_ns(""), 0);
    }
}
