//! The client processes, as the coordinator sees them.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::message::{Failure, Message};

/// A client that says nothing for so long, beyond what it was told to take, is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// One client process; killed when dropped.
pub struct Client {
    process: Child,
    /// Closed at its end.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Client {
    /// Starts one, to be told its order. It does not get the terminal's Ctrl-C: the coordinator ends it. Must be called on the
    /// main thread: the client is killed when the thread that started it is gone.
    pub fn start() -> Result<Client, Failure> {
        let program = std::env::current_exe().map_err(Failure::of("cannot find this program"))?;
        let mut process = Command::new(program)
            .arg("bench-client")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(Failure::of("cannot start a client process"))?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            return Err(Failure("a client process has no pipes".to_owned()));
        };
        let stdin = process.stdin.take();
        Ok(Client { process, stdin, lines: BufReader::new(stdout).lines(), stderr })
    }

    /// Writes a line to it.
    pub async fn tell(&mut self, what: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_string(what).map_err(Failure::of("an order cannot be written"))?;
        line.push('\n');
        let stdin =
            self.stdin.as_mut().ok_or_else(|| Failure("a client process was told to end".to_owned()))?;
        stdin.write_all(line.as_bytes()).await.map_err(Failure::of("a client process cannot be reached"))
    }

    /// What it says next; it was told to take `busy`.
    pub async fn next(&mut self, busy: Duration) -> Result<Message, Failure> {
        let limit = busy + PATIENCE;
        let line = tokio::time::timeout(limit, self.lines.next_line()).await;
        let line = line.map_err(|_| Failure(format!("a client process has said nothing for {limit:?}")))?;
        match line.map_err(Failure::of("a client process cannot be understood"))? {
            None => Err(self.ended().await),
            Some(line) => match serde_json::from_str(&line) {
                Ok(Message::Failed(failure)) => Err(failure),
                Ok(message) => Ok(message),
                Err(error) => Err(Failure(format!("a client process cannot be understood: {error}: {line}"))),
            },
        }
    }

    /// It ended without a word.
    async fn ended(&mut self) -> Failure {
        let mut last_words = String::new();
        let _ = self.stderr.read_to_string(&mut last_words).await;
        let status =
            self.process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        Failure(format!("a client process ended early ({status}) {}", last_words.trim_end()))
    }

    /// Waits for its end, of which it has spoken.
    pub async fn finish(&mut self) -> Result<ExitStatus, Failure> {
        self.finish_within(PATIENCE).await
    }

    /// The same, for one that needs longer.
    pub async fn finish_within(&mut self, limit: Duration) -> Result<ExitStatus, Failure> {
        drop(self.stdin.take());
        let status = tokio::time::timeout(limit, self.process.wait()).await;
        let status = status.map_err(|_| Failure("a client process does not end".to_owned()))?;
        status.map_err(Failure::of("a client process was lost"))
    }

    /// Ends it, wherever it is, and waits for that.
    pub async fn kill(mut self) {
        let _ = self.process.kill().await;
    }
}
