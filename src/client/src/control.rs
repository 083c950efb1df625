//! `Sessions.Open` over the control socket.

use std::path::Path;

use ferrio_api::v1;
use ferrio_api::v1::sessions_client::SessionsClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use crate::error::{Error, Refusal};
use crate::options::SessionBuilder;

/// Opens the session from any thread, whether a tokio runtime runs it or not: on a thread of its own, because a runtime
/// cannot be entered inside of another.
pub(crate) fn open(builder: &SessionBuilder) -> Result<v1::OpenSessionResponse, Error> {
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

pub(crate) async fn open_async(builder: &SessionBuilder) -> Result<v1::OpenSessionResponse, Error> {
    let path = builder.control_socket.as_path();
    let timed_out =
        |_| Error::Timeout { path: path.to_owned(), what: "Sessions.Open", limit: builder.timeout };
    tokio::time::timeout(builder.timeout, call(path, builder.request())).await.map_err(timed_out)?
}

async fn call(path: &Path, request: v1::OpenSessionRequest) -> Result<v1::OpenSessionResponse, Error> {
    // Connected here and not in the connector, so that the operating system's error is not lost inside of tonic's.
    let stream = UnixStream::connect(path).await.map_err(|cause| Error::connect(path, cause))?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { stream }
    });
    let channel = Endpoint::from_static("http://ferriod")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::connect(path, std::io::Error::other(error)))?;
    let answer = SessionsClient::new(channel).open(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Error::Refused {
        reason: Refusal::from(status.code()),
        message: status.message().to_owned(),
    })
}
