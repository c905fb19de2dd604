//! Kernel sources to device code, at run time, by NVRTC; kept in memory and on disk.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cudarc::nvrtc::sys;

use super::arch::Arch;
use super::kernels::Source;
use crate::error::{Error, Result};

/// What a source is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Machine code. Only this checks inline assembly.
    Cubin,
    /// The portable assembly.
    Ptx,
}

/// Device code and what the compiler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// An ELF file, or PTX as text.
    pub image: Vec<u8>,
    /// The compiler's log; for a cubin with the resources of each kernel.
    pub log: String,
}

/// What a kernel takes of a multiprocessor, as the assembler reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared: u32,
    /// Local memory of a thread, in bytes.
    pub stack: u32,
    /// Bytes written and read because registers ran out.
    pub spilled: u32,
}

impl Compiled {
    /// The resources of a kernel; `None` if the log does not speak of it.
    pub fn resources(&self, kernel: &str) -> Option<Resources> {
        let start = self.log.find(&format!("Compiling entry function '{kernel}'"))?;
        let section = &self.log[start..];
        let end = section[1..].find("Compiling entry function").map_or(section.len(), |e| e + 1);
        let section = &section[..end];
        // "… 40 registers, 476 bytes cmem[0]": the number before the unit.
        let number = |unit: &str| {
            let before = section[..section.find(unit)?].trim_end();
            before[before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1)..].parse::<u32>().ok()
        };
        Some(Resources {
            registers: number(" registers")?,
            shared: number(" bytes smem").unwrap_or(0),
            stack: number(" bytes stack frame")?,
            spilled: number(" bytes spill stores")? + number(" bytes spill loads")?,
        })
    }
}

/// Whether NVRTC can be loaded.
pub fn nvrtc_present() -> bool {
    // SAFETY: it only tries to load the library, and initialisers of NVRTC have no preconditions.
    unsafe { sys::is_culib_present() }
}

/// Compiles kernel sources, each once for an architecture and a target.
///
/// On disk an entry is two files named by a hash of source, headers, options and NVRTC's version; they are written under
/// a temporary name and renamed, so that processes may share a folder. The folder may be removed at any time.
#[derive(Debug)]
pub struct Compiler {
    version: (i32, i32),
    cache: Option<PathBuf>,
    done: Mutex<HashMap<String, Arc<Compiled>>>,
}

impl Compiler {
    /// A compiler that keeps results in `$FINEGRAIN_CUDA_CACHE`, else `$XDG_CACHE_HOME/finegrain`, else
    /// `~/.cache/finegrain`; without any of them in memory only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if NVRTC is not found.
    pub fn new() -> Result<Self> {
        let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = folder("FINEGRAIN_CUDA_CACHE")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("finegrain")))
            .or_else(|| Some(folder("HOME")?.join(".cache").join("finegrain")));
        Self::build(cache)
    }

    /// A compiler that keeps results in a folder, which it makes when it has something to keep.
    ///
    /// # Errors
    /// As [`Compiler::new`].
    pub fn with_cache(folder: impl Into<PathBuf>) -> Result<Self> {
        Self::build(Some(folder.into()))
    }

    fn build(cache: Option<PathBuf>) -> Result<Self> {
        if !nvrtc_present() {
            return Err(Error::Unsupported(
                "CUDA kernels are compiled by NVRTC, and libnvrtc was not found: install CUDA 12.8 or later, or run \
                 scripts/nvrtc.sh and export what it prints"
                    .to_owned(),
            ));
        }
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // SAFETY: the library is loaded, as was just checked; both pointers are valid for one write.
        check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) }, "its version")?;
        Ok(Compiler { version: (major, minor), cache, done: Mutex::default() })
    }

    /// NVRTC's version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The source's code for an architecture.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the compiler's log if the source is not accepted; [`Error::File`] if the cache cannot be
    /// written.
    pub fn compile(&self, source: &Source, arch: Arch, target: Target) -> Result<Arc<Compiled>> {
        let options = options(arch, target);
        let key = hash(source, options.iter().map(String::as_str).chain([&*format!("{:?}", self.version)]));
        if let Some(compiled) = self.memory().get(&key) {
            return Ok(compiled.clone());
        }
        let compiled = match self.read(&key) {
            Some(compiled) => compiled,
            None => {
                let compiled = compile(source, &options, target)
                    .map_err(|message| Error::Invalid(format!("{} for {arch}: {message}", source.file)))?;
                self.write(&key, &compiled)?;
                compiled
            }
        };
        let compiled = Arc::new(compiled);
        self.memory().insert(key, compiled.clone());
        Ok(compiled)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Compiled>>> {
        // Entries are inserted whole: a panic elsewhere leaves the map as it was.
        self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read(&self, key: &str) -> Option<Compiled> {
        let folder = self.cache.as_ref()?;
        // The image is written last, so where it is the log is too.
        let image = std::fs::read(folder.join(format!("{key}.image"))).ok()?;
        let log = std::fs::read_to_string(folder.join(format!("{key}.log"))).ok()?;
        Some(Compiled { image, log })
    }

    fn write(&self, key: &str, compiled: &Compiled) -> Result<()> {
        let Some(folder) = &self.cache else { return Ok(()) };
        let write = |path: &Path, bytes: &[u8]| {
            std::fs::create_dir_all(folder)?;
            let file = tempfile::NamedTempFile::new_in(folder)?;
            std::fs::write(file.path(), bytes)?;
            file.persist(path).map(drop).map_err(|e| e.error)
        };
        for (extension, bytes) in [("log", compiled.log.as_bytes()), ("image", &compiled.image)] {
            let path = folder.join(format!("{key}.{extension}"));
            write(&path, bytes).map_err(|e| Error::file(&path, e))?;
        }
        Ok(())
    }
}

/// The options for NVRTC. None of them changes bits: all arithmetic in the kernels is by intrinsics that name their
/// rounding. Contraction is off all the same, so that a plain `a * b + c` means what it says.
fn options(arch: Arch, target: Target) -> Vec<String> {
    let mut options = vec!["--std=c++17".to_owned(), "--fmad=false".to_owned()];
    match target {
        Target::Cubin => {
            options.push(format!("--gpu-architecture={}", arch.sm()));
            options.push("--ptxas-options=-v".to_owned());
        }
        Target::Ptx => options.push(format!("--gpu-architecture={}", arch.compute())),
    }
    options
}

/// A name for everything that decides the outcome of a compilation: FNV-1a, 128 bits, of source, headers and `more`, in
/// hexadecimal. The same on every machine.
fn hash<'a>(source: &Source, more: impl Iterator<Item = &'a str>) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
    let headers = source.headers();
    let texts = [source.file, source.text]
        .into_iter()
        .chain(headers.iter().flat_map(|h| [h.file, h.text]))
        .chain(more);
    // A zero byte ends each text: none contains one.
    let bytes = texts.flat_map(|t| t.bytes().chain([0]));
    let hash = bytes.fold(OFFSET, |h, b| (h ^ u128::from(b)).wrapping_mul(PRIME));
    format!("{hash:032x}")
}

impl Source {
    /// A hash of the source, its headers and the options, without the compiler's version: what generated PTX carries in
    /// its first line.
    pub fn ptx_hash(&self, arch: Arch) -> String {
        hash(self, options(arch, Target::Ptx).iter().map(String::as_str))
    }

    /// Name of the file in `kernels/ptx/` with the PTX for an architecture.
    pub fn ptx_file(&self, arch: Arch) -> String {
        format!("{}.{arch}.ptx", self.file.trim_end_matches(".cu"))
    }
}

fn check(result: sys::nvrtcResult, what: &str) -> Result<()> {
    result.result().map_err(|e| Error::Unsupported(format!("NVRTC failed to give {what}: {e}")))
}

/// A program that is destroyed when it goes out of scope.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created by nvrtcCreateProgram and is destroyed here alone.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

impl Program {
    /// What a pair of NVRTC functions (size, bytes) gives, without the zero byte at its end.
    fn bytes(
        &self,
        size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        get: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
        text: bool,
    ) -> std::result::Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program is alive; the pointer is valid for one write.
        unsafe { size(self.0, &mut length) }.result().map_err(|e| e.to_string())?;
        let mut bytes = vec![0u8; length];
        // SAFETY: the buffer has the length that NVRTC asked for.
        unsafe { get(self.0, bytes.as_mut_ptr().cast()) }.result().map_err(|e| e.to_string())?;
        if text {
            bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(length));
        }
        Ok(bytes)
    }

    fn log(&self) -> String {
        self.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog, true)
            .map(|log| String::from_utf8_lossy(&log).trim().to_owned())
            .unwrap_or_default()
    }
}

fn compile(source: &Source, options: &[String], target: Target) -> std::result::Result<Compiled, String> {
    let c = |text: &str| CString::new(text).map_err(|_| "a zero byte in the source".to_owned());
    let all =
        |texts: &mut dyn Iterator<Item = &str>| texts.map(c).collect::<std::result::Result<Vec<_>, _>>();
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();

    let (text, name) = (c(source.text)?, c(source.file)?);
    let headers = source.headers();
    let header_texts = all(&mut headers.iter().map(|h| h.text))?;
    let header_names = all(&mut headers.iter().map(|h| h.file))?;
    let options = all(&mut options.iter().map(String::as_str))?;

    let mut program = std::ptr::null_mut();
    // SAFETY: all strings end in zero and outlive the program; both arrays have headers.len() entries; the handle is
    // valid for one write.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            name.as_ptr(),
            headers.len() as c_int,
            pointers(&header_texts).as_ptr(),
            pointers(&header_names).as_ptr(),
        )
    }
    .result()
    .map_err(|e| e.to_string())?;
    let program = Program(program);
    // SAFETY: the program is alive and the array has options.len() strings.
    let result =
        unsafe { sys::nvrtcCompileProgram(program.0, options.len() as c_int, pointers(&options).as_ptr()) };
    let log = program.log();
    result.result().map_err(|e| format!("{e}\n{log}"))?;
    let image = match target {
        Target::Cubin => program.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN, false)?,
        Target::Ptx => program.bytes(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX, true)?,
    };
    Ok(Compiled { image, log })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_from_the_log() {
        let log = "ptxas info    : 84 bytes gmem\n\
                   ptxas info    : Compiling entry function 'a' for 'sm_89'\n\
                   ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 40 registers, used 0 barriers, 476 bytes cmem[0]\n\
                   ptxas info    : Compiling entry function 'ab' for 'sm_89'\n\
                   ptxas         .     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
                   ptxas info    : Used 255 registers, used 1 barriers, 64 bytes smem, 476 bytes cmem[0]\n";
        let compiled = Compiled { image: Vec::new(), log: log.to_owned() };
        let plain = Resources { registers: 40, shared: 0, stack: 0, spilled: 0 };
        assert_eq!(compiled.resources("a"), Some(plain));
        let spilled = Resources { registers: 255, shared: 64, stack: 16, spilled: 12 };
        assert_eq!(compiled.resources("ab"), Some(spilled));
        assert_eq!(compiled.resources("b"), None);
    }
}
