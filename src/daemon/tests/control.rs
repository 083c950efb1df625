//! The control services and the attach socket of a daemon within this process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferrio_api::v1;
use ferrio_api::v1::admin_client::AdminClient;
use ferrio_api::v1::engines_client::EnginesClient;
use ferrio_api::v1::queues_client::QueuesClient;
use ferrio_api::v1::sessions_client::SessionsClient;
use ferrio_api::v1::stats_client::StatsClient;
use ferrio_api::v1::volumes_client::VolumesClient;
use ferrio_shm::abi::SessionState;
use ferrio_shm::doorbell::DoorbellTx;
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseEvent, LeaseMessage};
use ferrio_shm::mapping::Mapping;
use ferrio_shm::sync::Ordering;
use ferrio_shm::{layout, peer};
use ferriod::config::read;
use ferriod::control::{self, Phase, Refused, incoming};
use ferriod::listen::Listeners;
use ferriod::runtime_dir::RuntimeDir;
use ferriod::start::{Started, start};
use ferriod::uid_limit::UidLimit;
use ferriod::{attach, lease};
use hyper_util::rt::TokioIo;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// The next message of the daemon.
async fn heard_on(lease: &AsyncFd<OwnedFd>, bytes: &mut [u8]) -> std::io::Result<Option<LeaseMessage>> {
    lease::receive(lease, bytes, &|| UidLimit::new(1, 1).count(0)).await
}

/// A daemon without a process of its own. Everything ends with the runtime of the test.
struct Fixture {
    dir: tempfile::TempDir,
    daemon: Arc<control::Daemon>,
    phase: watch::Sender<Phase>,
    channel: Channel,
    _runtime_dir: RuntimeDir,
}

impl Fixture {
    async fn new(limits: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = dir.path().join("run");
        let text = format!(
            "[daemon]\nruntime_dir = {run:?}\n[limits]\n{limits}\n[[engine]]\nname = \"one\"\nbackend = \"null\"\n\
             [[engine]]\nname = \"two\"\nbackend = \"null\"\n\
             [[volume]]\nname = \"a\"\nkind = \"null\"\nsize = 65536\nallow_any = true\n\
             [[volume]]\nname = \"b\"\nkind = \"null\"\nsize = 65536\nallow_any = true\nengine = \"two\"\n"
        );
        let (config, problems) = read("test.toml", &text);
        let config = config.unwrap_or_else(|| panic!("{problems}"));
        let Started { daemon, phase, notices, listeners, runtime_dir } = start(config).expect("started");
        let Listeners { control, attach, .. } = listeners;
        tokio::spawn(Arc::clone(&daemon.sessions).serve_notices(notices));
        let Refused { attach: attach_refused, control: control_refused } = daemon.refused.clone();
        tokio::spawn(attach::serve(
            attach,
            Arc::clone(&daemon.sessions),
            UidLimit::new(16, 4),
            attach_refused,
        ));
        let connections = incoming::accept(control, UidLimit::new(16, 8), 16, control_refused);
        tokio::spawn(control::serve(Arc::clone(&daemon), connections));
        let channel = connect(daemon.config.control_socket()).await.expect("connected");
        Self { dir, daemon, phase, channel, _runtime_dir: runtime_dir }
    }

    fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel.clone())
    }

    async fn open(&self, request: v1::OpenSessionRequest) -> Result<v1::OpenSessionResponse, tonic::Status> {
        self.sessions().open(request).await.map(tonic::Response::into_inner)
    }

    async fn list(&self) -> Vec<v1::Session> {
        self.sessions().list(v1::ListSessionsRequest {}).await.expect("listed").into_inner().sessions
    }

    /// Attaches like a client and gives the answer, the descriptors and the lease.
    async fn attach(&self, first: &LeaseMessage) -> (LeaseMessage, Vec<OwnedFd>, AsyncFd<OwnedFd>) {
        let socket = peer::connect(&self.dir.path().join("run/attach.sock")).expect("connected");
        rustix::io::ioctl_fionbio(&socket, true).expect("nonblocking");
        peer::send_message(&socket, &first.encode(), &[]).expect("sent");
        let socket = lease::polled(socket).expect("polled");
        let (mut bytes, mut fds) = ([0; LEASE_MESSAGE_MAX], Vec::new());
        loop {
            let mut ready = socket.readable().await.expect("readable");
            let received =
                ready.try_io(|socket| peer::recv_message(socket.as_fd(), &mut bytes, &mut fds, 200));
            if let Ok(length) = received {
                let length = length.expect("received");
                return (LeaseMessage::decode(&bytes[..length]).expect("a message"), fds, socket);
            }
        }
    }
}

async fn connect(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://ferriod").connect_with_connector(connector).await
}

fn request(volume: &str, access: v1::Access) -> v1::OpenSessionRequest {
    v1::OpenSessionRequest {
        client_name: "test".into(),
        queues: vec![v1::QueueRequest { sq_entries: 8, ..v1::QueueRequest::default() }],
        arena_bytes: 4096,
        volumes: vec![v1::VolumeRequest { name: volume.into(), access: access.into() }],
        abi_min: 1,
        abi_max: 1,
        ..v1::OpenSessionRequest::default()
    }
}

fn token(answer: &v1::OpenSessionResponse) -> LeaseMessage {
    LeaseMessage::Attach { token: answer.attach_token.as_slice().try_into().expect("32 bytes") }
}

/// Waits for what happens on other tasks and threads.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain for {what}");
}

#[tokio::test]
async fn a_session_lives_from_open_to_the_end_of_its_lease() {
    let fixture = Fixture::new("").await;
    let mut wanted = request("a", v1::Access::ReadWrite);
    wanted.queues.push(v1::QueueRequest { sq_entries: 4, cq_entries: 16, engine: "two".into() });
    let answer = fixture.open(wanted).await.expect("opened");
    assert_eq!((answer.doorbells, answer.queues[0].doorbell, answer.queues[1].doorbell), (2, 0, 1));
    assert_eq!((answer.queues[0].cq_entries, answer.queues[1].cq_entries), (16, 16));
    assert_eq!(answer.volumes[0].size_bytes, 65536);
    assert_eq!(fixture.list().await[0].state(), v1::SessionState::Opened);

    let (message, fds, lease) = fixture.attach(&token(&answer)).await;
    let LeaseMessage::Attached { session_id, memory_bytes, doorbells, queues, .. } = message else {
        panic!("refused: {message:?}")
    };
    assert_eq!((session_id, memory_bytes, doorbells, queues), (answer.session_id, answer.memory_bytes, 2, 2));
    assert_eq!(fds.len(), 1 + 2 + 2, "memory, doorbells, CQ doorbells");
    assert_eq!(fixture.list().await[0].state(), v1::SessionState::Active);
    let queues = QueuesClient::new(fixture.channel.clone()).list(v1::ListQueuesRequest {}).await;
    let queues = queues.expect("listed").into_inner();
    assert_eq!(queues.classes.len(), 2 * 3);
    let shown: Vec<_> = queues.queues.iter().map(|queue| (queue.queue, queue.engine.as_str())).collect();
    assert_eq!(shown, [(0, "one"), (1, "two")]);

    drop(lease);
    until("the session to go", async || fixture.list().await.is_empty().then_some(())).await;
    let stats = StatsClient::new(fixture.channel.clone())
        .get(v1::GetStatsRequest {})
        .await
        .expect("got")
        .into_inner();
    assert_eq!((stats.sessions, stats.sessions_opened, stats.sessions_refused), (0, 1, 0));
    assert_eq!(stats.engines.len(), 2);
}

#[tokio::test]
async fn a_session_that_breaks_its_rings_is_faulted_alone() {
    let fixture = Fixture::new("").await;
    let mut wanted = request("a", v1::Access::ReadWrite);
    wanted.queues.push(v1::QueueRequest { sq_entries: 4, cq_entries: 16, engine: "two".into() });
    let answer = fixture.open(wanted).await.expect("opened");
    let (_, mut fds, lease) = fixture.attach(&token(&answer)).await;
    let other = fixture.open(request("b", v1::Access::ReadWrite)).await.expect("opened");
    let (_, _other_fds, _other_lease) = fixture.attach(&token(&other)).await;

    let memory = Mapping::new(fds[0].as_fd(), answer.memory_bytes as usize).expect("mapped");
    let sq_tail =
        memory.u32(answer.queues[0].control_offset as usize + layout::control::SQ_TAIL).expect("in bounds");
    sq_tail.store(4711, Ordering::Release);
    DoorbellTx::from_fd(fds.remove(1)).ring().expect("rung");

    let mut bytes = [0; LEASE_MESSAGE_MAX];
    let heard = heard_on(&lease, &mut bytes).await.expect("received");
    let Some(LeaseMessage::Event(LeaseEvent::Fault { reason })) = heard else { panic!("{heard:?}") };
    assert!(reason.contains("4711"), "{reason}");
    let sessions = fixture.list().await;
    assert_eq!((sessions[0].state(), &sessions[0].reason), (v1::SessionState::Faulted, &reason));
    assert_eq!(sessions[1].state(), v1::SessionState::Active);
    let state = memory.u32(layout::header::STATE).expect("in bounds").load(Ordering::Acquire);
    assert_eq!(SessionState::try_from(state), Ok(SessionState::Faulted));
    fixture
        .open(request("a", v1::Access::ReadWrite))
        .await
        .expect_err("it keeps its volume until its lease closes");

    drop(lease);
    until("the faulted session to go", async || (fixture.list().await.len() == 1).then_some(())).await;
    let state = memory.u32(layout::header::STATE).expect("in bounds").load(Ordering::Acquire);
    assert_eq!(SessionState::try_from(state), Ok(SessionState::Closed));
}

#[tokio::test]
async fn volumes_show_their_holders_and_come_free() {
    let fixture = Fixture::new("").await;
    let answer = fixture.open(request("a", v1::Access::ReadWrite)).await.expect("opened");
    let (_, _, lease) = fixture.attach(&token(&answer)).await;
    let refused = fixture.open(request("a", v1::Access::ReadWriteShared)).await.expect_err("held");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.metadata().get("ferrio-errno").map(|errno| errno.as_bytes()), Some(b"16".as_slice()));
    let named = format!("session {} of client \"test\" (pid {}", answer.session_id, std::process::id());
    assert!(refused.message().contains(&named), "{refused:?}");
    let volumes = VolumesClient::new(fixture.channel.clone()).list(v1::ListVolumesRequest {}).await;
    let volumes = volumes.expect("listed").into_inner().volumes;
    assert_eq!(volumes[0].holders[0].session_id, answer.session_id);
    assert!(volumes[1].holders.is_empty());

    peer::send_message(lease.get_ref(), &LeaseMessage::Close.encode(), &[]).expect("sent");
    until("the volume to come free", async || {
        fixture.open(request("a", v1::Access::ReadWriteShared)).await.ok()
    })
    .await;
}

#[tokio::test]
async fn an_evicted_client_hears_why_before_its_lease_closes() {
    let fixture = Fixture::new("").await;
    let answer = fixture.open(request("a", v1::Access::ReadWrite)).await.expect("opened");
    let (_, _fds, lease) = fixture.attach(&token(&answer)).await;
    let evict = async |session_id, reason: &str| {
        fixture.sessions().evict(v1::EvictSessionRequest { session_id, reason: reason.into() }).await
    };
    let unknown = evict(4711, "").await.expect_err("no such session");
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("4711"), "{unknown:?}");
    let long = evict(answer.session_id, &"x".repeat(257)).await.expect_err("too long");
    assert_eq!(long.code(), Code::InvalidArgument);
    assert!(long.message().contains("257") && long.message().contains("0 to 256"), "{long:?}");

    let escape = evict(answer.session_id, "\u{1b}[2J").await.expect_err("acts on terminals");
    assert!(escape.message().contains("\\u{1b}"), "{escape:?}");

    evict(answer.session_id, "volume a is moved at noon").await.expect("evicted");
    let mut bytes = [0; LEASE_MESSAGE_MAX];
    let reason = "volume a is moved at noon".to_owned();
    let heard = heard_on(&lease, &mut bytes).await.expect("received");
    assert_eq!(heard, Some(LeaseMessage::Event(LeaseEvent::Evict { reason })));
    assert_eq!(heard_on(&lease, &mut bytes).await.expect("received"), None, "the lease closes next");
    until("the session to go", async || fixture.list().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn tokens_are_good_once_and_not_for_long() {
    let fixture = Fixture::new("attach_timeout_s = 1").await;
    let refusal = async |first: &LeaseMessage| match fixture.attach(first).await.0 {
        LeaseMessage::Refused { errno, reason } => (errno, reason),
        other => panic!("not refused: {other:?}"),
    };
    let answer = fixture.open(request("a", v1::Access::ReadOnly)).await.expect("opened");
    let (_, _, _lease) = fixture.attach(&token(&answer)).await;
    let (errno, reason) = refusal(&token(&answer)).await;
    assert_eq!(errno, rustix::io::Errno::NOENT.raw_os_error());
    assert!(reason.contains("limits.attach_timeout_s = 1"), "{reason}");
    assert_eq!(
        refusal(&LeaseMessage::Attach { token: [7; 32] }).await.0,
        rustix::io::Errno::NOENT.raw_os_error()
    );
    assert_eq!(refusal(&LeaseMessage::Close).await.0, rustix::io::Errno::PROTO.raw_os_error());
    let resume = LeaseMessage::Resume { session_id: 1, secret: [0; 32] };
    assert_eq!(refusal(&resume).await.0, rustix::io::Errno::STALE.raw_os_error());

    let unused = fixture.open(request("b", v1::Access::ReadWrite)).await.expect("opened");
    until("the token to expire", async || (fixture.list().await.len() == 1).then_some(())).await;
    assert_eq!(refusal(&token(&unused)).await.0, rustix::io::Errno::NOENT.raw_os_error());
    fixture.open(request("b", v1::Access::ReadWrite)).await.expect("its volume is free again");
}

#[tokio::test]
async fn limits_are_named_with_their_key() {
    let limits = "sessions_max = 3\nsessions_per_uid_max = 2\nqueues_per_uid_max = 3\nmemory_bytes_per_uid_max = \"1 MiB\"";
    let fixture = Fixture::new(limits).await;
    let refused = async |request: v1::OpenSessionRequest| {
        let status = fixture.open(request).await.expect_err("over the limit");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        status.message().to_owned()
    };
    let ro = || request("a", v1::Access::ReadOnly);
    fixture
        .open(v1::OpenSessionRequest { queues: vec![ro().queues[0].clone(); 2], ..ro() })
        .await
        .expect("opened");
    let queues = refused(v1::OpenSessionRequest { queues: vec![ro().queues[0].clone(); 2], ..ro() }).await;
    assert!(
        queues
            .contains("queues of this user: 2 in use, 2 more asked for, limit 3 (limits.queues_per_uid_max)"),
        "{queues}"
    );
    let memory = refused(v1::OpenSessionRequest { arena_bytes: 1 << 20, ..ro() }).await;
    assert!(memory.contains("limits.memory_bytes_per_uid_max"), "{memory}");
    fixture.open(ro()).await.expect("opened");
    let sessions = refused(ro()).await;
    assert!(sessions.contains("limits.sessions_per_uid_max"), "{sessions}");
    assert_eq!(fixture.daemon.sessions.totals().refused, 3);
}

#[tokio::test]
async fn watching_sends_until_the_daemon_closes() {
    let fixture = Fixture::new("").await;
    let mut client = QueuesClient::new(fixture.channel.clone());
    for interval_ms in [1, 49, 60_001, u32::MAX] {
        let status = client.watch(v1::WatchQueuesRequest { interval_ms }).await.expect_err("out of range");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("50 to 60000"), "{status:?}");
    }
    let mut answers =
        client.watch(v1::WatchQueuesRequest { interval_ms: 50 }).await.expect("watching").into_inner();
    for _ in 0..3 {
        assert_eq!(answers.message().await.expect("an answer").expect("one more").classes.len(), 6);
    }
    fixture.phase.send_replace(Phase::Closing);
    until("the end of the stream", async || {
        matches!(answers.message().await, Ok(None) | Err(_)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stopping_daemon_says_so() {
    let fixture = Fixture::new("").await;
    let answer = fixture.open(request("a", v1::Access::ReadOnly)).await.expect("opened");
    let late = fixture.open(request("a", v1::Access::ReadOnly)).await.expect("opened");
    let (_, _, lease) = fixture.attach(&token(&answer)).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(fixture.channel.clone());
    let mut check = async || {
        let request = tonic_health::pb::HealthCheckRequest { service: "ferrio.v1.Sessions".into() };
        health.check(request).await.expect("checked").into_inner().status()
    };
    use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};
    until("serving", async || (check().await == Serving).then_some(())).await;

    fixture.phase.send_replace(Phase::Draining);
    fixture.daemon.sessions.drain(Duration::from_secs(3));
    until("not serving", async || (check().await == NotServing).then_some(())).await;
    let info =
        AdminClient::new(fixture.channel.clone()).info(v1::InfoRequest {}).await.expect("info").into_inner();
    assert_eq!(info.state(), v1::DaemonState::Draining);
    let refused = fixture.open(request("b", v1::Access::ReadOnly)).await.expect_err("stopping");
    assert_eq!(refused.code(), Code::Unavailable);
    let (message, ..) = fixture.attach(&token(&late)).await;
    assert!(matches!(message, LeaseMessage::Refused { errno: 108, .. }), "{message:?}");
    let mut bytes = [0; LEASE_MESSAGE_MAX];
    let heard = heard_on(&lease, &mut bytes).await.expect("received");
    assert_eq!(heard, Some(LeaseMessage::Event(LeaseEvent::Drain { deadline_ms: 3000 })));

    fixture.daemon.sessions.leave_all("test");
    assert_eq!(heard_on(&lease, &mut bytes).await.expect("received"), None, "the lease closes at the end");
    until("all to go", async || fixture.list().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn engines_and_reflection_are_there() {
    let fixture = Fixture::new("").await;
    let engines = EnginesClient::new(fixture.channel.clone()).list(v1::ListEnginesRequest {}).await;
    let engines = engines.expect("listed").into_inner().engines;
    let shown: Vec<_> =
        engines.iter().map(|engine| (engine.name.as_str(), engine.backend.as_str())).collect();
    assert_eq!(shown, [("one", "null"), ("two", "null")]);
    assert_eq!(engines[0].budgets, [32, 16, 16]);

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(fixture.channel.clone());
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.expect("reflected");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in [
        "ferrio.v1.Sessions",
        "ferrio.v1.Volumes",
        "ferrio.v1.Queues",
        "ferrio.v1.Engines",
        "ferrio.v1.Stats",
        "ferrio.v1.Scheduling",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} not in {names:?}");
    }
}

#[tokio::test]
async fn one_user_has_so_many_connections() {
    let fixture = Fixture::new("").await;
    let path = fixture.daemon.config.control_socket();
    let mut taken = Vec::new();
    // The fixture's own is the first of 8.
    for _ in 0..7 {
        let channel = connect(path.clone()).await.expect("connected");
        AdminClient::new(channel.clone()).info(v1::InfoRequest {}).await.expect("answered");
        taken.push(channel);
    }
    let over = match connect(path.clone()).await {
        Ok(channel) => AdminClient::new(channel).info(v1::InfoRequest {}).await.is_err(),
        Err(_) => true,
    };
    assert!(over, "the ninth is closed");
    drop(taken);
    until("a place", async || {
        let channel = connect(path.clone()).await.ok()?;
        AdminClient::new(channel).info(v1::InfoRequest {}).await.ok()
    })
    .await;
}
