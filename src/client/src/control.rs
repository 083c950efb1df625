//! `Sessions.Open` over the control socket, and what must be known before it.

use std::path::Path;

use ferrio_api::v1;
use ferrio_api::v1::sessions_client::SessionsClient;
use ferrio_api::v1::volumes_client::VolumesClient;
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
        let channel = connect(&path).await?;
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

async fn connect(path: &Path) -> Result<Channel, Error> {
    // Connected here and not in the connector, so that the operating system's error is not lost inside of tonic's.
    let stream = UnixStream::connect(path).await.map_err(|cause| Error::connect(path, cause))?;
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
