//! Which backend this machine can run, and why.

use std::fmt;
use std::str::FromStr;

use crate::aio::{self, Aio};
use crate::driver::{Driver, DriverError};
use crate::null::Null;
use crate::uring::{self, Uring};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// io_uring where it works, else AIO.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// AIO or nothing.
    Aio,
    /// No I/O at all.
    Null,
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// [`Uring`].
    IoUring,
    /// [`Aio`].
    Aio,
    /// [`Null`].
    Null,
}

/// What was found by trying: a ring with a NOP, a context with a flush. The errors name cause and fix.
#[derive(Clone, Debug)]
pub struct Probe {
    /// io_uring works, or why not.
    pub io_uring: Result<(), String>,
    /// AIO works, or why not.
    pub aio: Result<(), String>,
}

/// Tries the backends.
pub fn probe() -> Probe {
    Probe { io_uring: uring::probe(), aio: aio::probe() }
}

/// Picks the backend, and says why. Only `Auto` falls back; what was asked for by name is had or refused.
pub fn choose(choice: BackendChoice) -> Result<(Backend, String), DriverError> {
    let unavailable = |backend, reason| DriverError::Unavailable { backend, reason };
    match choice {
        BackendChoice::Null => Ok((Backend::Null, "asked for by configuration".to_owned())),
        BackendChoice::IoUring => uring::probe()
            .map(|()| (Backend::IoUring, "asked for by configuration".to_owned()))
            .map_err(|reason| unavailable(Uring::NAME, reason)),
        BackendChoice::Aio => aio::probe()
            .map(|()| (Backend::Aio, "asked for by configuration".to_owned()))
            .map_err(|reason| unavailable(Aio::NAME, reason)),
        BackendChoice::Auto => match uring::probe() {
            Ok(()) => Ok((Backend::IoUring, "auto: io_uring works here".to_owned())),
            Err(uring) => match aio::probe() {
                Ok(()) => Ok((Backend::Aio, format!("auto: io_uring cannot be used: {uring}"))),
                Err(aio) => Err(unavailable("auto", format!("io_uring: {uring}; aio: {aio}"))),
            },
        },
    }
}

impl BackendChoice {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            BackendChoice::Auto => "auto",
            BackendChoice::IoUring => Uring::NAME,
            BackendChoice::Aio => Aio::NAME,
            BackendChoice::Null => Null::NAME,
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<BackendChoice, String> {
        [BackendChoice::Auto, BackendChoice::IoUring, BackendChoice::Aio, BackendChoice::Null]
            .into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| format!("backend {text:?} is none of auto, io_uring, aio, null"))
    }
}

impl Backend {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Backend::IoUring => Uring::NAME,
            Backend::Aio => Aio::NAME,
            Backend::Null => Null::NAME,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
