//! `Sessions.Open` over the control socket, and what must be known before it.

use std::path::Path;
use std::time::Duration;

use ferrio_api::v1;
use ferrio_api::v1::sessions_client::SessionsClient;
use ferrio_api::v1::volumes_client::VolumesClient;
use ferrio_shm::peer;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::Access;
use crate::error::{Error, Refusal};
use crate::options::{QueueOptions, SessionBuilder};

/// Opens the session from any thread, whether a tokio runtime runs it or not: on a thread of its own, because a runtime
/// cannot be entered inside of another. Fills in the queues of a builder that has none.
pub(crate) fn open(builder: &mut SessionBuilder) -> Result<v1::OpenSessionResponse, Error> {
    std::thread::scope(|scope| {
        let opener = std::thread::Builder::new()
            .name("ferrio-open".into())
            .spawn_scoped(scope, || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(Error::io("start the runtime for the control socket"))?;
                runtime.block_on(open_async(builder))
            })
            .map_err(Error::io("start a thread for the control socket"))?;
        opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// As [`open`].
pub(crate) async fn open_async(builder: &mut SessionBuilder) -> Result<v1::OpenSessionResponse, Error> {
    let (path, limit) = (builder.control_socket.clone(), builder.timeout);
    let timed_out = |_| Error::Timeout { path: path.clone(), what: "Sessions.Open", limit };
    let call = async {
        let channel = connect(&path, limit).await?;
        if builder.queues.is_empty() {
            let (count, options) = &builder.per_engine;
            let engines = engines_of(channel.clone(), &builder.volumes).await;
            let queue = |engine: String| QueueOptions { engine, ..options.clone() };
            let queues = |engine: String| std::iter::repeat_n(queue(engine), *count as usize);
            builder.queues = engines.into_iter().flat_map(queues).collect();
        }
        let answer = SessionsClient::new(channel).open(builder.request()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Error::Refused {
            reason: refusal(&status),
            message: status.message().to_owned(),
        })
    };
    tokio::time::timeout(limit, call).await.map_err(timed_out)?
}

/// What is said by the library of HTTP has a cause of its own: the connection broke, because the daemon ended.
fn refusal(status: &tonic::Status) -> Refusal {
    match std::error::Error::source(status) {
        Some(_) => Refusal::Unavailable,
        None => Refusal::from(status.code()),
    }
}

/// The engines at which the volumes live, each once, in their order. Where that cannot be known, only the first volume's,
/// which has no name here: if a volume does not exist, `Open` says so better.
async fn engines_of(channel: Channel, volumes: &[(String, Access)]) -> Vec<String> {
    let first = || vec![String::new()];
    if volumes.len() < 2 {
        return first();
    }
    let Ok(known) = VolumesClient::new(channel).list(v1::ListVolumesRequest {}).await else { return first() };
    let known = known.into_inner().volumes;
    let mut engines: Vec<String> = Vec::new();
    for (name, _) in volumes {
        let Some(volume) = known.iter().find(|volume| volume.name == *name) else { return first() };
        if !engines.contains(&volume.engine) {
            engines.push(volume.engine.clone());
        }
    }
    engines
}

async fn connect(path: &Path, limit: Duration) -> Result<Channel, Error> {
    // Connected here and not in the connector, so that the operating system's error is not lost inside of tonic's.
    let stream = connect_control(path, limit).await.map_err(|cause| Error::connect(path, cause))?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { stream }
    });
    Endpoint::from_static("http://ferriod")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::connect(path, std::io::Error::other(error)))
}

/// Connects to a control socket, for calls other than those of this library. While more connect than the daemon takes it waits
/// in line with them, for `limit` at most: a connection that does not block would fail instead, again and again. Needs a tokio
/// runtime.
///
/// # Errors
/// Those of connect(2); `TimedOut` after `limit`.
pub async fn connect_control(path: &Path, limit: Duration) -> std::io::Result<UnixStream> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        connected => return connected,
    }
    let path = path.to_owned();
    let connected = tokio::task::spawn_blocking(move || peer::connect_stream_within(&path, limit)).await;
    let stream = std::os::unix::net::UnixStream::from(connected.map_err(std::io::Error::other)??);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn who_finds_the_backlog_full_waits_in_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let listener = net::UnixListener::bind(&path).unwrap();
        peer::set_backlog(&listener).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock, "what a client is not to be told");
        let late = connect_control(&path, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        let accept = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            listener.accept().unwrap()
        };
        let (connected, _accepted) = tokio::join!(connect_control(&path, Duration::from_secs(60)), accept);
        connected.unwrap();
    }
}
