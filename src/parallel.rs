//! Work on all threads of the current pool, watched and cancelled from outside.
//!
//! One loop over `&dyn Fn`, compiled once, for every kernel of the library: a task is some ten microseconds or more, beside
//! which a call through a pointer costs nothing.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Asks work that is under way to stop. It does so between tasks, with [`Error::Cancelled`]; what it was to write is
/// then incomplete.
///
/// ```
/// use finegrain::parallel::Cancellation;
/// static CANCEL: Cancellation = Cancellation::new();
/// assert!(!CANCEL.is_requested());
/// CANCEL.request(); // from a signal handler, say: it only stores a flag
/// assert!(CANCEL.is_requested());
/// ```
#[derive(Debug, Default)]
pub struct Cancellation(AtomicBool);

impl Cancellation {
    /// Nothing is asked yet.
    pub const fn new() -> Self {
        Cancellation(AtomicBool::new(false))
    }

    /// Asks work to stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who is told how far work is, and who may stop it. Nothing here changes a bit of a result.
#[derive(Clone, Copy, Default)]
pub struct Watch<'a> {
    /// Called from any thread with the units of work just finished: elements, or multiply-adds of a GEMM.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
    /// Looked at between tasks.
    pub cancellation: Option<&'a Cancellation>,
}

impl Watch<'_> {
    /// Nobody watches.
    pub const NONE: Watch<'static> = Watch { progress: None, cancellation: None };

    /// Reports `units` of finished work.
    pub fn report(&self, units: u64) {
        if let Some(progress) = self.progress {
            progress(units);
        }
    }

    /// # Errors
    /// [`Error::Cancelled`] if the work is to stop.
    pub fn check(&self) -> Result<()> {
        match self.cancellation {
            Some(cancellation) if cancellation.is_requested() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Watch { progress, cancellation } = self;
        f.debug_struct("Watch")
            .field("progress", &progress.is_some())
            .field("cancellation", cancellation)
            .finish()
    }
}

thread_local! {
    /// Whether this thread works without the others.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread only, whatever in it would be shared out.
pub(crate) fn alone<R>(work: impl FnOnce() -> R) -> R {
    /// Sets it back, panic or not.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    work()
}

/// The threads that share work here: those of the current pool, or one.
pub(crate) fn threads() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Runs tasks `0..count`, each once, on the threads of the current pool.
///
/// # Errors
/// [`Error::Cancelled`] if the work was to stop before all were begun.
pub(crate) fn for_each(watch: &Watch<'_>, count: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
    let one = |i: usize| {
        watch.check()?;
        task(i);
        Ok(())
    };
    if count == 1 || ALONE.get() {
        return (0..count).try_for_each(one);
    }
    (0..count).into_par_iter().with_max_len(1).try_for_each(one)
}

/// The same, a part of something for each task.
///
/// # Errors
/// As [`for_each`].
pub(crate) fn for_each_part<T: Send>(
    watch: &Watch<'_>,
    parts: Vec<T>,
    task: &(dyn Fn(usize, T) + Sync),
) -> Result<()> {
    let slots: Vec<Mutex<Option<T>>> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    for_each(watch, slots.len(), &|i| {
        if let Some(part) = slots[i].lock().unwrap_or_else(PoisonError::into_inner).take() {
            task(i, part);
        }
    })
}

/// What each of the tasks `0..count` gives, in order.
///
/// # Errors
/// As [`for_each`].
pub(crate) fn map<R: Send>(
    watch: &Watch<'_>,
    count: usize,
    task: &(dyn Fn(usize) -> R + Sync),
) -> Result<Vec<R>> {
    let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
    for_each_part(watch, results.iter_mut().collect(), &|i, result| *result = Some(task(i)))?;
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_results_keep_their_order() {
        let squares = map(&Watch::NONE, 1000, &|i| i * i).unwrap();
        assert!(squares.iter().enumerate().all(|(i, &x)| x == i * i));
        assert_eq!(squares.len(), 1000);
        let mut data = vec![0usize; 100];
        for_each_part(&Watch::NONE, data.chunks_mut(7).collect(), &|i, part| part.fill(i)).unwrap();
        assert!(data.iter().enumerate().all(|(at, &x)| x == at / 7));
        assert!(map(&Watch::NONE, 0, &|i| i).unwrap().is_empty());
    }

    #[test]
    fn work_stays_on_a_thread_that_is_alone() {
        let here = std::thread::current().id();
        alone(|| {
            assert_eq!(threads(), 1);
            for_each(&Watch::NONE, 1000, &|_| assert_eq!(std::thread::current().id(), here)).unwrap();
        });
        assert_eq!(threads(), rayon::current_num_threads());
    }

    #[test]
    fn work_stops_between_tasks() {
        let cancellation = Cancellation::new();
        let watch = Watch { cancellation: Some(&cancellation), ..Watch::NONE };
        let done = std::sync::atomic::AtomicUsize::new(0);
        let outcome = for_each(&watch, 10_000, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
            cancellation.request();
        });
        assert!(matches!(outcome, Err(Error::Cancelled)));
        assert!(done.into_inner() < 10_000);
    }
}
