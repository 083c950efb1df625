//! What runs without a configuration, for a first look and for development. Needs no root.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::Config;
use crate::{cli, daemon, log};

/// Where the development default lives.
enum Home {
    /// `$XDG_RUNTIME_DIR/ferrio`: the volume stays for the next start.
    Session(PathBuf),
    /// A directory of its own, removed at the end.
    Temporary(tempfile::TempDir),
}

impl Home {
    fn make() -> io::Result<Self> {
        if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir()) {
            let dir = dir.join("ferrio");
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => return Ok(Self::Session(dir)),
            }
        }
        let mut private = tempfile::Builder::new();
        private.prefix("ferrio-").permissions(Permissions::from_mode(0o700));
        Ok(Self::Temporary(private.tempdir()?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Session(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

/// Runs the development default.
pub fn serve() -> ExitCode {
    cli::abort_on_panic();
    let home = match Home::make() {
        Ok(home) => home,
        Err(error) => {
            eprintln!(
                "ferriod: cannot make a directory for the development default: {error}; set XDG_RUNTIME_DIR or TMPDIR to a writable directory"
            );
            return ExitCode::FAILURE;
        }
    };
    let config = Config::development(home.path());
    log::start(config.daemon.log_level);
    let socket = config.control_socket();
    let kept = match home {
        Home::Session(_) => "kept for the next start",
        Home::Temporary(_) => "removed at the end",
    };
    cli::finish(daemon::run(config, |_| {
        println!("ferriod: development default in {} ({kept})", home.path().display());
        println!("  volume dev, 64 MiB, open to every user who may open the socket");
        println!("  look at it:  ferrioctl --socket {} info", socket.display());
        println!("  end it:      Ctrl-C");
    }))
}
