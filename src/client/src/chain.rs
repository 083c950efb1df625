//! Chains: requests of which each starts only after the one before it has succeeded.

use ferrio_shm::abi::limits::CHAIN_MAX;

use crate::completion::{Completion, Ticket};
use crate::error::{Error, IoFailure};
use crate::{Features, Queue, Request};

/// A chain that was not taken. Nothing of it was submitted; its requests are handed back, in order.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ChainFailure {
    /// Why. [`Error::Full`]: pick completions up and submit it again.
    pub error: Error,
    /// The requests.
    pub requests: Vec<Request>,
}

impl Queue {
    /// Puts the requests into the SQ ring as one chain: each starts after the one before it has succeeded; after a failure
    /// the rest answer [`Errno::ECANCELED`](crate::Errno::ECANCELED). All or none are taken, and the next
    /// [`commit`](Self::commit) shows the daemon all of them at once. Returns their tickets, in order.
    ///
    /// # Errors
    /// Every error hands all of the requests back. [`Error::ChainLength`] for none, for more than 32, or for more than the
    /// rings hold.
    pub fn submit_chain(&mut self, requests: Vec<Request>) -> Result<Vec<Ticket>, Box<ChainFailure>> {
        match self.admit_chain(&requests) {
            Ok(()) => Ok(self.stage_chain(requests)),
            Err(error) => Err(Box::new(ChainFailure { error, requests })),
        }
    }

    fn admit_chain(&mut self, requests: &[Request]) -> Result<(), Error> {
        let rings = (self.sq_entries() as usize).min(self.in_flight_max());
        let max = rings.min(CHAIN_MAX as usize);
        if requests.is_empty() || requests.len() > max {
            return Err(Error::ChainLength { requests: requests.len(), max });
        }
        if requests.len() > 1 {
            self.session().check_features(Features::ORDER)?;
        }
        requests.iter().try_for_each(|request| self.admit(request))?;
        if self.room() < requests.len() {
            return Err(Error::Full { queue: self.index() });
        }
        Ok(())
    }

    fn stage_chain(&mut self, requests: Vec<Request>) -> Vec<Ticket> {
        let last = requests.len() - 1;
        let stage = |(place, mut request): (usize, Request)| {
            request.link(place < last);
            self.stage(request).expect("there was room for all of the chain")
        };
        requests.into_iter().enumerate().map(stage).collect()
    }

    /// Submits the requests as one chain and waits for all of their completions, which come in their order. Completions
    /// of other requests that come meanwhile are kept for [`poll`](Self::poll) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// Those of the call. How each member fared is in its completion.
    pub fn execute_chain(
        &mut self,
        mut requests: Vec<Request>,
    ) -> Result<Vec<Completion>, Box<ChainFailure>> {
        let tickets = loop {
            match self.submit_chain(requests) {
                Ok(tickets) => break tickets,
                Err(failure) if matches!(failure.error, Error::Full { .. }) => requests = failure.requests,
                Err(failure) => return Err(failure),
            }
            if let Err(error) = self.make_room() {
                return Err(Box::new(ChainFailure { error, requests }));
            }
        };
        let failed = |error| Box::new(ChainFailure { error, requests: Vec::new() });
        self.commit().map_err(failed)?;
        let mut completions: Vec<Option<Completion>> = tickets.iter().map(|_| None).collect();
        while completions.iter().any(Option::is_none) {
            if let Some(completion) = self.wait_for_any().map_err(failed)? {
                match tickets.iter().position(|ticket| *ticket == completion.ticket) {
                    Some(place) => completions[place] = Some(completion),
                    None => self.set_aside(completion),
                }
            }
        }
        Ok(completions.into_iter().flatten().collect())
    }
}

impl From<Box<ChainFailure>> for Error {
    fn from(failure: Box<ChainFailure>) -> Self {
        failure.error
    }
}

/// What became of a member, as the blocking calls tell it.
pub(crate) fn outcome(completion: Completion) -> Result<Completion, IoFailure> {
    let Completion { result: Err(error), buffer, iovec, .. } = completion else { return Ok(completion) };
    Err(IoFailure { error: error.into(), buffer, iovec })
}
