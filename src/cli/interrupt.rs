//! SIGINT and SIGTERM: work is asked to stop, temporary files are removed, and the program ends as shells expect it.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::engine::Engine;
use crate::parallel::{Cancellation, Watch};

/// What work under way looks at.
static CANCELLATION: Cancellation = Cancellation::new();
/// The signal that came; 0 before one did.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Added to a signal's number to make the exit status of a program that it ended.
#[cfg(unix)]
const OF_SIGNALS: i32 = 128;

/// Work that is reported to `progress` and stops when the program is told to end.
pub(crate) fn watch<'a>(progress: &'a (dyn Fn(u64) + Sync)) -> Watch<'a> {
    Watch { progress: Some(progress), cancellation: Some(&CANCELLATION) }
}

/// An engine whose work is reported and stops likewise.
pub(crate) fn watched<'a>(engine: Engine<'a>, progress: &'a (dyn Fn(u64) + Sync)) -> Engine<'a> {
    engine.with_progress(progress).with_cancellation(&CANCELLATION)
}

/// Whether a signal came: what fails from then on is not worth a line.
pub(crate) fn came() -> bool {
    SIGNAL.load(Ordering::Acquire) != 0
}

/// Handles the signals from here on, once a process. Without a thread for it they do what they did.
#[cfg(unix)]
pub(crate) fn install() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use std::sync::{Once, mpsc};

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (ready, registered) = mpsc::channel();
        let wait = move || {
            // Registered by the thread that waits: where there is none, signals keep their effect.
            let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else { return };
            drop(ready);
            if let Some(signal) = signals.forever().next() {
                SIGNAL.store(signal, Ordering::Release);
                CANCELLATION.request();
                crate::checkpoint::remove_temporaries();
                std::process::exit(OF_SIGNALS + signal);
            }
        };
        if std::thread::Builder::new().name("signals".to_owned()).spawn(wait).is_ok() {
            // An error says that the thread is done with registering.
            let _: Result<(), _> = registered.recv();
        }
    });
}

#[cfg(not(unix))]
pub(crate) fn install() {}

/// Waits for the end of a program that a signal is ending.
pub(crate) fn wait() -> ! {
    loop {
        std::thread::park();
    }
}
