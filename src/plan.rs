//! What an engine is going to do, before it does it.
#![forbid(unsafe_code)]

use std::fmt;

use crate::error::Result;

/// How one operation runs: it can be printed, and run. Having one means that the operation is not refused.
///
/// ```
/// use finegrain::Engine;
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Recipe, Role};
/// let x = Matrix::filled(4, 300, 1.0f32);
/// let engine = Engine::reference();
/// let plan = engine.plan_quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
/// assert_eq!(plan.to_string(), "quantize 4×300 as activation by deepseek-v3: reference");
/// assert_eq!(plan.run()?.stats.elements, 1200);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[must_use = "a plan does nothing until it is run"]
pub struct Plan<'p, R> {
    how: String,
    work: Box<dyn FnOnce() -> Result<R> + Send + 'p>,
}

impl<'p, R> Plan<'p, R> {
    /// What is done, and where, in words; and the doing.
    pub(crate) fn new(how: String, work: impl FnOnce() -> Result<R> + Send + 'p) -> Self {
        Plan { how, work: Box::new(work) }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled); what the outside world may refuse, such as a device.
    pub fn run(self) -> Result<R> {
        (self.work)()
    }
}

impl<R> fmt::Display for Plan<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.how)
    }
}

impl<R> fmt::Debug for Plan<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plan").field(&self.how).finish()
    }
}
