//! One thread for each core, with a runtime, sockets and connections of its own: none of them waits for another.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::{Door, Listener, Serving, serve};

/// Threads that serve a door. They end when this is dropped, with whatever is still open.
#[derive(Debug)]
pub struct Workers {
    stop: CancellationToken,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Why they cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread with sockets of its own")]
pub struct WorkersError(#[from] io::Error);

impl Workers {
    /// A worker for each core that this process may use. `door` makes what belongs to one of them.
    pub fn start<D: Door>(
        listeners: Vec<Listener>,
        door: impl Fn() -> Arc<D>,
        serving: &Serving,
    ) -> Result<Self, WorkersError> {
        let mut workers = Self { stop: CancellationToken::new(), threads: Vec::new() };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut last = Some(listeners);
        for left in (0..cores).rev() {
            let own = match (left, &last) {
                (1.., Some(listeners)) => listeners.iter().map(Listener::share).collect::<io::Result<Vec<_>>>()?,
                _ => last.take().unwrap_or_default(),
            };
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (door, serving, stop) = (door(), serving.clone(), workers.stop.clone());
            let work = move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = serve(own, door, serving) => stop.cancelled().await,
                        () = stop.cancelled() => {}
                    }
                });
                // A look-up of a name that hangs keeps nobody waiting.
                runtime.shutdown_background();
            };
            workers.threads.push(thread::Builder::new().name(format!("clients-{left}")).spawn(work)?);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // A panic outside of every connection was printed where it happened.
            thread.join().ok();
        }
    }
}
