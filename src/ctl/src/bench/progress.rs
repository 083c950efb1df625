//! Where it stands, on standard error.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::millis;

/// Drawn only between the rounds, so that nothing runs beside them.
pub struct Screen {
    /// Standard error is a terminal.
    bar: Option<ProgressBar>,
    began: Instant,
}

impl Screen {
    pub fn new() -> Screen {
        let bar = || {
            let style = ProgressStyle::with_template("{bar:30} {msg}");
            ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        };
        Screen { bar: stderr().is_terminal().then(bar), began: Instant::now() }
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// A pass over the volume is so far. Permille.
    pub fn sweep(&self, what: &str, permille: u32) {
        if let Some(bar) = &self.bar {
            bar.set_position(permille.into());
            bar.set_message(format!("{what}, {} %", permille / 10));
        }
    }

    /// The rounds begin, each of which takes about `each`.
    pub fn rounds(&mut self, count: usize, each: Duration) {
        self.began = Instant::now();
        if self.bar.is_none() {
            self.note(&format!("{count} rounds, about {}", text(each * count as u32)));
        }
    }

    /// A round begins.
    pub fn round(&self, index: usize, count: usize, each: Duration, who: &str) {
        let Some(bar) = &self.bar else { return };
        let each = if index == 0 { each } else { self.began.elapsed() / index as u32 };
        bar.set_position((index * 1000 / count.max(1)) as u64);
        let left = text(each * (count - index) as u32);
        bar.set_message(format!("round {} of {count}, {who}, {left} left", index + 1));
    }

    /// Takes the moving part off the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn text(time: Duration) -> String {
    millis(time.as_millis() as u64)
}
