//! The client processes, as the demo sees them.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc::UnboundedSender;

use super::client::Role;
use super::drive::LOST_AFTER;
use super::message::{Failure, Message};
use super::stage::{VOLUME, myself};

/// A client tells how far it is many times a second; a request of its own may take this long before it gives up.
const SILENCE_MAX: Duration = LOST_AFTER.saturating_add(Duration::from_secs(15));

/// Where everything that a client says goes, with the client's index.
pub type Tell = UnboundedSender<(usize, Message)>;

/// What a client process is given.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub role: Role,
    pub first_block: u64,
    pub blocks: u64,
    pub seconds: u64,
    pub seed: u64,
    pub corrupt_block: Option<u64>,
}

/// One client process; killed when dropped.
pub struct Client {
    name: &'static str,
    index: usize,
    process: Child,
    go: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Client {
    pub fn start(index: usize, socket: &Path, order: Order) -> Result<Self, Failure> {
        let name = order.role.name();
        let failed = |error: std::io::Error| Failure::new(name, format!("cannot be started: {error}"));
        let mut command = myself()?;
        command.arg("demo-client").arg("--socket").arg(socket).args(["--volume", VOLUME, "--role", name]);
        let numbers = [
            ("--first-block", Some(order.first_block)),
            ("--blocks", Some(order.blocks)),
            ("--seconds", Some(order.seconds)),
            ("--seed", Some(order.seed)),
            ("--corrupt-block", order.corrupt_block),
        ];
        for (option, number) in numbers {
            if let Some(number) = number {
                command.arg(option).arg(number.to_string());
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(failed)?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let go = process.stdin.take();
        Ok(Self { name, index, process, go, lines: BufReader::new(stdout).lines(), stderr })
    }

    /// Reads until the client has filled its area.
    pub async fn filled(&mut self, tell: &Tell) -> Result<(), Failure> {
        loop {
            match self.next(tell).await? {
                Message::Filled => return Ok(()),
                Message::Done(_) => return Err(Failure::new(self.name, "it was done before it worked")),
                Message::Failed(failure) => return Err(failure),
                Message::Progress { .. } => {}
            }
        }
    }

    /// Lets it work, and reads until it is done.
    pub async fn finish(&mut self, tell: &Tell) -> Result<(), Failure> {
        let lost = |error: std::io::Error| Failure::new(self.name, format!("cannot be reached: {error}"));
        if let Some(mut go) = self.go.take() {
            go.write_all(b"go\n").await.map_err(lost)?;
        }
        loop {
            match self.next(tell).await? {
                Message::Done(_) => break,
                Message::Failed(failure) => return Err(failure),
                Message::Progress { .. } | Message::Filled => {}
            }
        }
        let status = self.process.wait().await;
        let status = status.map_err(|error| Failure::new(self.name, format!("was lost: {error}")))?;
        if status.success() { Ok(()) } else { Err(self.ended(status, "")) }
    }

    async fn next(&mut self, tell: &Tell) -> Result<Message, Failure> {
        let lost = |error: String| Failure::new(self.name, format!("its words cannot be read: {error}"));
        let line = tokio::time::timeout(SILENCE_MAX, self.lines.next_line()).await;
        let line =
            line.map_err(|_| Failure::new(self.name, format!("has said nothing for {SILENCE_MAX:?}")))?;
        let Some(line) = line.map_err(|error| lost(error.to_string()))? else {
            return Err(self.closed().await);
        };
        let message: Message =
            serde_json::from_str(&line).map_err(|error| lost(format!("{error}: {line}")))?;
        // Nobody looks any more when the demo is ending.
        let _ = tell.send((self.index, message.clone()));
        Ok(message)
    }

    /// It ended without a word.
    async fn closed(&mut self) -> Failure {
        let mut last_words = String::new();
        let _ = self.stderr.read_to_string(&mut last_words).await;
        match self.process.wait().await {
            Ok(status) => self.ended(status, &last_words),
            Err(error) => Failure::new(self.name, format!("was lost: {error}")),
        }
    }

    fn ended(&self, status: ExitStatus, last_words: &str) -> Failure {
        let separator = if last_words.is_empty() { "" } else { ": " };
        Failure::new(self.name, format!("ended early ({status}){separator}{}", last_words.trim_end()))
    }

    /// Ends it, wherever it is.
    pub async fn kill(mut self) {
        let _ = self.process.kill().await;
    }
}
