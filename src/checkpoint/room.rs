//! Whether there is room for what a file asks for: sizes from a file must not end a process, or a machine.

use std::path::Path;

use crate::error::{Error, Result};

/// Bytes of memory that this process may still take: what the machine has left, less where its control group or its
/// limit of address space is tighter. `None` where the system does not say.
pub fn memory_left() -> Option<u64> {
    let limits = [machine(), control_group(), address_space()];
    limits.into_iter().flatten().min()
}

/// Refuses work that needs more memory than there is.
///
/// # Errors
/// [`Error::Unsupported`] with both numbers. `what` begins the sentence.
pub fn require_memory(what: &str, bytes: Option<u64>) -> Result<()> {
    let left = memory_left();
    match (bytes, left) {
        (Some(bytes), Some(left)) if bytes > left => Err(Error::Unsupported(format!(
            "{what} needs {} of memory, {} are left",
            readable(bytes),
            readable(left)
        ))),
        (None, _) => Err(Error::Unsupported(format!("{what} needs more memory than 64-bit numbers count"))),
        _ => Ok(()),
    }
}

/// The bytes of a matrix; `None` for more than can be counted.
pub fn matrix_bytes(rows: usize, cols: usize, width: usize) -> Option<u64> {
    rows.checked_mul(cols)?.checked_mul(width).map(|bytes| bytes as u64)
}

/// Refuses an output that its file system has no room for.
///
/// # Errors
/// [`Error::File`] with both numbers.
pub(super) fn require_disk(path: &Path, bytes: u64) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match disk_left(folder) {
        Some(left) if bytes > left => Err(Error::file(
            path,
            format!("would have {}, its file system has {} left", readable(bytes), readable(left)),
        )),
        _ => Ok(()),
    }
}

/// A number of bytes as people read it.
fn readable(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (bytes.checked_ilog2().unwrap_or(0) / 10).min(5);
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{:.1} {}", bytes as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit as usize]),
    }
}

#[cfg(target_os = "linux")]
fn machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Some((kib("MemAvailable")? + kib("SwapFree").unwrap_or(0)) * 1024)
}

#[cfg(target_os = "linux")]
fn control_group() -> Option<u64> {
    let read = |path: String| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/');
    [own, ""]
        .into_iter()
        .find_map(|group| {
            let of = |name: &str| read(format!("/sys/fs/cgroup{group}/{name}"));
            Some((of("memory.max")?, of("memory.current")?))
        })
        // Pages of files count as used, and are given up on demand.
        .map(|(most, used)| most.saturating_sub(used.min(most / 2)))
}

#[cfg(target_os = "linux")]
fn address_space() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let most: u64 = line.split_whitespace().next()?.parse().ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let used = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let used: u64 = used.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(most.saturating_sub(used * 1024))
}

#[cfg(not(target_os = "linux"))]
fn machine() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn control_group() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn address_space() -> Option<u64> {
    None
}

#[cfg(unix)]
fn disk_left(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
fn disk_left(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_let_through() {
        assert!(require_memory("a page", Some(4096)).is_ok());
        assert!(require_memory("a matrix", matrix_bytes(usize::MAX, 2, 4)).is_err());
        assert!(require_disk(Path::new("x"), 0).is_ok());
        if memory_left().is_some() {
            let message = require_memory("d [1, 2]", Some(u64::MAX)).unwrap_err().to_string();
            assert!(message.starts_with("d [1, 2] needs 16384.0 PiB of memory"), "{message}");
        }
        assert_eq!([readable(1023), readable(1536), readable(3 << 30)], ["1023 bytes", "1.5 KiB", "3.0 GiB"]);
    }
}
