//! `ferrio.v1.Sessions`.

use std::sync::Arc;

use ferrio_api::v1::sessions_server::Sessions;
use ferrio_api::v1::{ListSessionsRequest, ListSessionsResponse, OpenSessionRequest, OpenSessionResponse};
use tonic::{Request, Response, Status};

use super::{Daemon, incoming};

#[tonic::async_trait]
impl Sessions for Daemon {
    async fn open(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let peer = incoming::identity(&request)?;
        let answer = self.sessions.open(request.get_ref(), &peer)?;
        let (sessions, session_id) = (Arc::clone(&self.sessions), answer.session_id);
        tokio::spawn(async move {
            tokio::time::sleep(sessions.attach_timeout()).await;
            sessions.expire(session_id);
        });
        Ok(Response::new(answer))
    }

    async fn list(&self, _: Request<ListSessionsRequest>) -> Result<Response<ListSessionsResponse>, Status> {
        Ok(Response::new(ListSessionsResponse { sessions: self.sessions.list() }))
    }
}
