//! An engine before its threads run.

use std::sync::Arc;

use ferrio_driver::{Driver, DriverConfig, Shape, aio::Aio};

use crate::{
    bell::Bell,
    completion::{self, Reaper},
    config::{EngineConfig, EngineError, Threads},
    dormant::DormantSession,
    inject::{self, Injector},
    journal::renew::{Renewed, renew},
    stats::Shared,
    submitter::{Parts, Submitter},
};

/// Volumes per engine.
const FILES_MAX: u32 = 1024;

/// Everything an engine's threads own, before they run. Tests and benchmarks drive it by `turn`.
pub struct Threaded<D: Driver> {
    /// Stages 2 to 6.
    pub submitter: Submitter<D::Submit>,
    /// Stages 8 to 10.
    pub reaper: Reaper<D::Reap>,
    /// Counters.
    pub shared: Arc<Shared>,
    /// Commands.
    pub injector: Injector,
    /// Sessions that the journal named.
    pub dormant: Vec<DormantSession>,
    pub(crate) shape: Shape,
    pub(crate) poller: Option<Arc<Bell>>,
}

impl<D: Driver> Threaded<D> {
    /// Opens the driver and takes the journal over.
    ///
    /// # Errors
    /// As [`crate::Engine::start`].
    pub fn new(config: &EngineConfig) -> Result<Self, EngineError> {
        let system = |what| move |source| EngineError::System { engine: config.name.clone(), what, source };
        config.merge.check()?;
        let shape = shape::<D>(config.threads);
        // Those of the sessions, and the scratch memory of each volume.
        let regions_max = config.sessions_max.saturating_mul(1 + config.regions_per_session);
        let driver_config = DriverConfig {
            depth: config.depth,
            shape,
            files_max: FILES_MAX,
            helpers: config.helpers,
            regions_max: regions_max.saturating_add(FILES_MAX),
            ..DriverConfig::default()
        };
        let (submit, reap) = D::open(&driver_config)
            .map_err(|source| EngineError::Driver { engine: config.name.clone(), source })?;
        let Renewed { journal, dormant, sequence } = renew(config)?;
        let listed = dormant.list();
        let shared = Arc::new(Shared::new(config.requests_max));
        let bell = Arc::new(Bell::new().map_err(system("making an eventfd"))?);
        let poller = match shape {
            Shape::One => None,
            Shape::Two => Some(Arc::new(Bell::new().map_err(system("making an eventfd"))?)),
        };
        let (submitter_link, reaper_link) = completion::link(config.requests_max, config.queues_max);
        let (injector, inbox) = inject::injector(Arc::clone(&bell));
        let woken = poller.as_ref().map(|_| Arc::clone(&bell));
        let reaper = Reaper::new(reap, reaper_link, Arc::clone(&shared), journal.clone(), woken);
        let submitter = Submitter::new(Parts {
            name: config.name.clone(),
            driver: submit,
            shared: Arc::clone(&shared),
            journal,
            link: submitter_link,
            bell,
            poller: poller.clone(),
            inbox,
            budgets: config.budgets,
            merge: config.merge,
            depth: config.depth,
            sessions_max: config.sessions_max,
            dormant,
            sequence,
        })
        .map_err(system("making an epoll"))?;
        Ok(Self { submitter, reaper, shared, injector, dormant: listed, shape, poller })
    }
}

fn shape<D: Driver>(threads: Threads) -> Shape {
    match threads {
        Threads::One => Shape::One,
        Threads::Two => Shape::Two,
        Threads::Auto if D::NAME == Aio::NAME => Shape::Two,
        Threads::Auto => Shape::One,
    }
}
