//! Threads that run callbacks.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use super::{
    Shared,
    answer::{IoCallback, IoCompletion},
    event::Channel,
};

thread_local! {
    /// This thread is running a callback.
    static CALLING: Cell<bool> = const { Cell::new(false) };
}

/// This thread is running a callback, and must not wait for callbacks.
pub(super) fn is_calling() -> bool {
    CALLING.get()
}

/// Threads that run the callbacks of contexts, in the order of the answers. Clones are the same threads; they end with the
/// last clone and the last context that uses them.
///
/// A callback that takes long occupies one of the threads, and the others go on. What waits for a thread is bounded by the
/// depths of the contexts.
pub struct IoWorkers<C: IoCallback> {
    /// `None`: the reaper of each context calls by itself.
    pool: Option<Arc<Pool<C>>>,
}

/// Ends the threads when it is dropped.
struct Pool<C: IoCallback> {
    jobs: Arc<Jobs<C>>,
    threads: Vec<JoinHandle<()>>,
}

struct Jobs<C> {
    queue: Mutex<Queue<C>>,
    bell: Condvar,
}

struct Queue<C> {
    jobs: VecDeque<Job<C>>,
    /// Threads that wait at the bell.
    idle: usize,
    ended: bool,
}

/// A callback that is to be called.
pub(super) struct Job<C> {
    pub shared: Arc<Shared<C>>,
    pub channel: Channel,
    pub place: u32,
    pub callback: C,
    pub completion: IoCompletion,
}

impl<C: IoCallback> IoWorkers<C> {
    /// Starts `threads` threads, `ferrio-cb-0` and on. With 0 there are none, and each context calls back from the one thread
    /// that picks its answers up: the fastest way for callbacks that only hand something on, and a callback that takes long
    /// holds up all others of its context.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(threads: usize) -> io::Result<Self> {
        if threads == 0 {
            return Ok(Self { pool: None });
        }
        let queue = Queue { jobs: VecDeque::new(), idle: 0, ended: false };
        let jobs = Arc::new(Jobs { queue: Mutex::new(queue), bell: Condvar::new() });
        let mut pool = Pool { jobs, threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let jobs = Arc::clone(&pool.jobs);
            let thread = thread::Builder::new().name(format!("ferrio-cb-{number}"));
            pool.threads.push(thread.spawn(move || jobs.run())?);
        }
        Ok(Self { pool: Some(Arc::new(pool)) })
    }

    /// Sees to it that these are called.
    pub(super) fn call(&self, jobs: &mut Vec<Job<C>>) {
        match &self.pool {
            None => jobs.drain(..).for_each(Job::run),
            Some(pool) => pool.jobs.push(jobs),
        }
    }
}

impl<C: IoCallback> Clone for IoWorkers<C> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone() }
    }
}

impl<C: IoCallback> fmt::Debug for IoWorkers<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.pool.as_ref().map_or(0, |pool| pool.threads.len());
        f.debug_struct("IoWorkers").field("threads", &threads).finish()
    }
}

impl<C: IoCallback> Jobs<C> {
    fn push(&self, jobs: &mut Vec<Job<C>>) {
        if jobs.is_empty() {
            return;
        }
        let mut queue = self.queue();
        let wakes = queue.idle.min(jobs.len());
        queue.jobs.extend(jobs.drain(..));
        drop(queue);
        (0..wakes).for_each(|_| self.bell.notify_one());
    }

    fn run(&self) {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = self.queue();
            } else if queue.ended {
                return;
            } else {
                queue.idle += 1;
                queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<C>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: IoCallback> Job<C> {
    /// Calls. The place is free before, so that the callback can go on with another event.
    pub fn run(self) {
        let Self { shared, channel, place, callback, completion } = self;
        shared.lane(channel).release(place);
        let before = CALLING.replace(true);
        if catch_unwind(AssertUnwindSafe(|| callback.call(completion))).is_err() {
            tracing::error!(
                context = shared.name(),
                "a callback of channel {channel} panicked (the panic message stands before this); its event was \
                 answered, and the others go on"
            );
        }
        CALLING.set(before);
        shared.told(channel);
    }
}

impl<C: IoCallback> Drop for Pool<C> {
    fn drop(&mut self) {
        self.jobs.queue().ended = true;
        self.jobs.bell.notify_all();
        for thread in self.threads.drain(..) {
            // The last clone may go with a callback: that thread ends by itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
