//! Where work runs: without the interpreter's lock, and long work where Ctrl-C reaches it.

use std::num::NonZeroUsize;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use finegrain::Engine;
use finegrain::parallel::Cancellation;
use pyo3::prelude::*;

use crate::errors::{OrRaise, refuse};

/// Elements or multiply-adds up to which work is done before anybody could press a key.
const SHORT: u64 = 1 << 22;
/// How often signals are looked at.
const PATIENCE: Duration = Duration::from_millis(50);

/// The engine for `threads`, all for none given.
pub(crate) fn engine(threads: Option<usize>) -> PyResult<Engine<'static>> {
    let Some(threads) = threads else { return Ok(Engine::cpu()) };
    let threads = NonZeroUsize::new(threads).ok_or_else(|| refuse("threads=0: expected at least 1"))?;
    Engine::cpu().with_threads(threads).or_raise()
}

/// Runs `work` without the interpreter's lock. Work of more than a few milliseconds (`amount` elements or multiply-adds)
/// runs on a thread of its own, so that this one can see a signal and stop it.
pub(crate) fn run<R: Send>(
    py: Python<'_>,
    engine: &Engine<'_>,
    amount: u64,
    work: impl FnOnce(&Engine<'_>) -> finegrain::Result<R> + Send,
) -> PyResult<R> {
    if amount <= SHORT {
        return py.detach(|| work(engine)).or_raise();
    }
    let cancellation = Cancellation::new();
    thread::scope(|scope| {
        let (done, waits) = mpsc::channel();
        let watched = engine.clone().with_cancellation(&cancellation);
        let worker = scope.spawn(move || {
            let result = work(&watched);
            // Whoever waits may have gone.
            let _gone = done.send(());
            result
        });
        let mut signal = Ok(());
        let mut waits = waits;
        loop {
            // Done, or gone with a panic: only time that runs out means that it works still.
            let (outcome, again) = py.detach(move || (waits.recv_timeout(PATIENCE), waits));
            if outcome != Err(RecvTimeoutError::Timeout) {
                break;
            }
            waits = again;
            signal = py.check_signals();
            if signal.is_err() {
                cancellation.request();
                break;
            }
        }
        let result = py.detach(|| worker.join());
        signal?;
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).or_raise()
    })
}
