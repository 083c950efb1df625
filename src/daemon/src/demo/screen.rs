//! Progress on standard error: bars that move on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::client::Role;
use super::message::{Message, Phase};
use super::watch::Watch;

/// Without a terminal, the queues are shown this often.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Shows how far the clients are and what is in the queues.
pub enum Screen {
    /// Standard error is a terminal.
    Terminal {
        /// One per client.
        bars: Vec<ProgressBar>,
        /// The queues.
        queues: ProgressBar,
    },
    /// It is not.
    Plain {
        /// Phase of each client.
        phases: [Option<Phase>; Role::ALL.len()],
        /// When the queues were shown.
        shown: Instant,
    },
}

impl Screen {
    pub fn new() -> Self {
        if !stderr().is_terminal() {
            return Self::Plain { phases: [None; Role::ALL.len()], shown: Instant::now() };
        }
        let all = MultiProgress::new();
        let style = |template| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let bar = |role: Role| {
            let bar =
                ProgressBar::new(1000).with_style(style("{prefix:<12} {msg:<7} {bar:40} {percent:>3}%"));
            all.add(bar.with_prefix(role.name()))
        };
        let bars = Role::ALL.map(bar).into();
        Self::Terminal { bars, queues: all.add(ProgressBar::new_spinner().with_style(style("\n{msg}"))) }
    }

    /// A line above all else.
    pub fn note(&self, line: &str) {
        match self {
            Self::Terminal { queues, .. } => queues.suspend(|| eprintln!("{line}")),
            Self::Plain { .. } => eprintln!("{line}"),
        }
    }

    pub fn show(&mut self, client: usize, message: &Message) {
        match (self, message) {
            (Self::Terminal { bars, .. }, Message::Progress { phase, permille }) => {
                bars[client].set_message(phase.to_string());
                bars[client].set_position(u64::from(*permille));
            }
            (Self::Terminal { bars, .. }, Message::Filled | Message::Done(_)) => {
                bars[client].set_position(1000)
            }
            (Self::Plain { phases, .. }, Message::Progress { phase, .. })
                if phases[client] != Some(*phase) =>
            {
                phases[client] = Some(*phase);
                eprintln!("{:<12} {phase}", Role::ALL[client].name());
            }
            (Self::Plain { .. }, Message::Done(report)) => {
                eprintln!("{:<12} done, {} blocks verified", report.name, report.blocks_verified);
            }
            _ => {}
        }
    }

    /// To be called again and again while the clients are at it.
    pub fn show_queues(&mut self, watch: &Watch) {
        match self {
            Self::Terminal { queues, .. } => queues.set_message(watch.table()),
            Self::Plain { phases, shown } => {
                if phases.contains(&Some(Phase::Work)) && shown.elapsed() >= PLAIN_EVERY {
                    *shown = Instant::now();
                    eprintln!("{}", watch.table());
                }
            }
        }
    }

    /// Takes the moving part off the terminal.
    pub fn clear(&self) {
        if let Self::Terminal { bars, queues } = self {
            queues.finish_and_clear();
            bars.iter().for_each(ProgressBar::finish_and_clear);
        }
    }
}
