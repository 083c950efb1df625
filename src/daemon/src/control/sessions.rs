//! `ferrio.v1.Sessions`.

use std::sync::Arc;

use ferrio_api::v1::sessions_server::Sessions;
use ferrio_api::v1::{
    EvictSessionRequest, EvictSessionResponse, ListSessionsRequest, ListSessionsResponse, OpenSessionRequest,
    OpenSessionResponse,
};
use tonic::{Request, Response, Status};

use super::{Daemon, Phase, errors, incoming, reached};

/// Bytes of the reason for an eviction; it goes into one lease message.
const REASON_BYTES_MAX: u64 = 256;

#[tonic::async_trait]
impl Sessions for Daemon {
    async fn open(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let peer = incoming::identity(&request)?;
        tokio::select! {
            turn = self.sessions.turn_of(&peer) => turn?,
            // Waits for nothing any more: it is told that the daemon stops.
            () = reached(self.phase.clone(), Phase::Draining) => {}
        }
        let mut answer = self.sessions.open(request.get_ref(), &peer)?;
        let (sessions, session_id) = (Arc::clone(&self.sessions), answer.session_id);
        tokio::spawn(async move {
            tokio::time::sleep(sessions.attach_timeout()).await;
            sessions.expire(session_id);
        });
        // After the timer was set: whoever asked may have gone before it is done.
        self.sessions.make_huge(&mut answer).await;
        Ok(Response::new(answer))
    }

    async fn list(&self, _: Request<ListSessionsRequest>) -> Result<Response<ListSessionsResponse>, Status> {
        Ok(Response::new(ListSessionsResponse { sessions: self.sessions.list() }))
    }

    async fn evict(
        &self,
        request: Request<EvictSessionRequest>,
    ) -> Result<Response<EvictSessionResponse>, Status> {
        let peer = incoming::admin(&request, "evict sessions")?;
        let EvictSessionRequest { session_id, reason } = request.into_inner();
        let length = reason.len() as u64;
        if length > REASON_BYTES_MAX {
            return Err(errors::out_of_range("reason", length, 0, REASON_BYTES_MAX, "bytes"));
        }
        if reason.chars().any(char::is_control) {
            return Err(errors::not_text("reason", &reason));
        }
        let reason = if reason.is_empty() { format!("evicted by uid {}", peer.uid) } else { reason };
        if self.sessions.evict(session_id, &reason) {
            return Ok(Response::new(EvictSessionResponse {}));
        }
        Err(errors::no_session(session_id))
    }
}
