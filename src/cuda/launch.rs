//! One run of a kernel, with what it was made from.

use std::fmt;

use super::driver::Arg;
use super::kernels::{Config, Desc, Kernel};
use crate::error::{Error, Result};

/// One run of a kernel: the last of Desc → [`Config`] → Launch. It can be printed.
#[derive(Clone, Debug)]
pub struct Launch {
    kernel: &'static Kernel,
    config: Config,
    args: Vec<Arg>,
}

impl Launch {
    /// The kernel's launch for a problem of these sizes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the grid is larger than a launch can be.
    pub(super) fn new(kernel: &'static Kernel, desc: Desc, args: Vec<Arg>) -> Result<Self> {
        let Some(config) = kernel.config(desc) else {
            return Err(Error::Unsupported(format!("{} has no grid for {desc}", kernel.name)));
        };
        Ok(Launch { kernel, config, args })
    }

    /// What runs.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// How it is cut.
    pub fn config(&self) -> Config {
        self.config
    }

    /// Its arguments, as the kernel's source declares them.
    pub fn args(&self) -> &[Arg] {
        &self.args
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kernel.name, self.config)
    }
}
