//! NVRTC, where it is found.

use std::path::Path;
use std::sync::OnceLock;

use finegrain::cuda::{Compiler, nvrtc_present};

/// A compiler, or `None` where NVRTC is not found and need not be.
pub fn compiler() -> Option<&'static Compiler> {
    static COMPILER: OnceLock<Option<Compiler>> = OnceLock::new();
    let compiler = COMPILER.get_or_init(|| {
        if !nvrtc_present() {
            let required = std::env::var_os("FINEGRAIN_REQUIRE_NVRTC").is_some_and(|v| v == "1");
            assert!(!required, "NVRTC not found, and FINEGRAIN_REQUIRE_NVRTC is set");
            return None;
        }
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
        Some(Compiler::with_cache(cache).unwrap())
    });
    if compiler.is_none() {
        println!("skipped: NVRTC not found");
    }
    compiler.as_ref()
}
