//! The way to the daemon.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::error::CtlError;

const SYSTEM_SOCKET: &str = "/run/ferrio/control.sock";
/// Lists of 65536 queues are longer than the default of 4 MiB.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The socket asked for, or the default one.
pub fn socket(asked: Option<PathBuf>) -> PathBuf {
    asked.unwrap_or_else(|| default_socket(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)))
}

/// Connects to the daemon at `socket`.
pub async fn connect(socket: &Path) -> Result<Channel, CtlError> {
    let stream = match ferrio_client::connect_control(socket, ANSWER_TIMEOUT).await {
        Ok(stream) => stream,
        Err(source) => {
            let hint = hint(source.kind());
            return Err(CtlError::Connect { path: socket.to_owned(), source, hint });
        }
    };
    // One connection is enough: when it ends, so does this process.
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(std::io::Error::from(ErrorKind::ConnectionReset));
        std::future::ready(stream.map(TokioIo::new))
    });
    Endpoint::from_static("http://ferriod")
        .connect_timeout(ANSWER_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| CtlError::Lost(error.to_string()))
}

fn default_socket(runtime_dir: Option<PathBuf>) -> PathBuf {
    let own = runtime_dir.map(|dir| dir.join("ferrio/control.sock"));
    own.filter(|path| path.exists()).unwrap_or_else(|| Path::new(SYSTEM_SOCKET).to_owned())
}

fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => {
            "no daemon has made this socket: start one (`systemctl start ferriod`), or name the socket of a running one \
             with --socket PATH or FERRIO_SOCKET"
        }
        ErrorKind::ConnectionRefused => {
            "the socket is a left-over, nobody listens: start the daemon (`systemctl start ferriod`), it replaces it"
        }
        ErrorKind::PermissionDenied => {
            "your user may not use this socket: join its group, usually ferrio (`usermod -aG ferrio USER`, then log in \
             again)"
        }
        ErrorKind::TimedOut => {
            "too many wait to be accepted there: the daemon is stopped, or its log says who floods the socket"
        }
        _ => "is this the control socket of a ferriod?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_daemon_comes_before_the_system_one() {
        let dir = std::env::temp_dir().join(format!("ferrioctl-test-{}", std::process::id()));
        assert_eq!(default_socket(None), Path::new(SYSTEM_SOCKET));
        assert_eq!(default_socket(Some(dir.clone())), Path::new(SYSTEM_SOCKET), "nothing is there");
        std::fs::create_dir_all(dir.join("ferrio")).expect("made");
        std::fs::write(dir.join("ferrio/control.sock"), "").expect("written");
        assert_eq!(default_socket(Some(dir.clone())), dir.join("ferrio/control.sock"));
        std::fs::remove_dir_all(dir).expect("removed");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_daemon_is_explained() {
        let error = connect(Path::new("/no/such/control.sock")).await.expect_err("nothing there");
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(text.contains("/no/such/control.sock") && text.contains("systemctl start ferriod"), "{text}");
    }
}
