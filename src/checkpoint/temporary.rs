//! Files in the making: under a temporary name beside their own, which they get when they are whole. A process that is
//! told to end removes them first ([`remove_temporaries`]).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Links that are followed before they count as a ring.
const MAX_LINKS: usize = 40;

/// The temporary files of this process.
static OPEN: Mutex<Registry> = Mutex::new(Registry { closed: false, paths: Vec::new() });

struct Registry {
    /// The process ends: no more files are begun.
    closed: bool,
    paths: Vec<PathBuf>,
}

fn registry() -> MutexGuard<'static, Registry> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every temporary file of this process and lets no more be begun: what is being written is given up. For the
/// moment before a process ends that was told to, by SIGINT say; outputs keep what they held.
pub fn remove_temporaries() {
    let mut registry = registry();
    registry.closed = true;
    for path in registry.paths.drain(..) {
        // One that is gone has got its name.
        let _ = std::fs::remove_file(path);
    }
}

/// A file in the making. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Temporary {
    /// `None` once it has got its name.
    file: Option<NamedTempFile>,
    at: PathBuf,
    /// The name it is to have: that of the file behind a link.
    target: PathBuf,
}

impl Temporary {
    /// A file that is to be `path`. Where there is one already, the new one has its permissions; a link is written
    /// through.
    pub(super) fn beside(path: &Path) -> Result<Self> {
        let target = behind_links(path)?;
        let there = target.metadata().ok();
        match &there {
            Some(there) if there.is_dir() => return Err(Error::file(path, "is a folder")),
            // Renaming over a device or a pipe would replace it by a file.
            Some(there) if !there.is_file() => {
                return Err(Error::file(path, "is there and not a regular file"));
            }
            _ => {}
        }
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(Error::file(path, format!("there is no folder {}", folder.display())));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".finegrain-");
        // Plain 0666 less the umask, as any program creates files; the default of a temporary file is private, and so is
        // one that replaces another, until it has that one's permissions.
        #[cfg(unix)]
        if there.is_none() {
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
        // Created under the lock: whoever removes all temporary files sees it, or it is not begun.
        let mut registry = registry();
        if registry.closed {
            return Err(Error::Cancelled);
        }
        // The error of tempfile names the temporary path, which tells nobody anything.
        let fail = |e: std::io::Error| Error::file(path, format!("cannot be created: {}", e.kind()));
        let file = builder.tempfile_in(folder).map_err(fail)?;
        let at = file.path().to_owned();
        registry.paths.push(at.clone());
        drop(registry);
        let temporary = Temporary { file: Some(file), at, target };
        if let Some(there) = there {
            keep_permissions(&there, temporary.as_file()).map_err(fail)?;
        }
        Ok(temporary)
    }

    pub(super) fn as_file(&self) -> &File {
        self.file.as_ref().expect("it has its name only when it is given up").as_file()
    }

    /// Gives it its name.
    pub(super) fn persist(mut self) -> std::io::Result<()> {
        match self.file.take() {
            Some(file) => file.persist(&self.target).map(drop).map_err(|e| e.error),
            None => Ok(()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Removed before it is forgotten, so that at no moment nobody would remove it.
        drop(self.file.take());
        registry().paths.retain(|path| *path != self.at);
    }
}

/// The path that links lead to; the file need not be there.
fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        if !target.symlink_metadata().is_ok_and(|there| there.is_symlink()) {
            return Ok(target);
        }
        let to = target.read_link().map_err(|e| Error::file(path, e))?;
        target = target.parent().unwrap_or(Path::new("")).join(to);
    }
    Err(Error::file(path, format!("more than {MAX_LINKS} links lead on from there")))
}

/// The permissions, and where possible the owner, of the file that is to be replaced.
#[cfg(unix)]
fn keep_permissions(there: &std::fs::Metadata, file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    const GROUP: u32 = 0o070;
    let new = file.metadata()?;
    let mut mode = there.mode() & 0o777;
    if (new.uid(), new.gid()) != (there.uid(), there.gid()) {
        let kept = fchown(file, Some(there.uid()), Some(there.gid()))
            .or_else(|_| fchown(file, None, Some(there.gid())));
        if kept.is_err() {
            // What one group may do is no business of another.
            mode &= !GROUP;
        }
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn keep_permissions(_: &std::fs::Metadata, _: &File) -> std::io::Result<()> {
    Ok(())
}
