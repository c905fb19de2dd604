//! The instruction sets that a test tries.

use finegrain::simd::Isa;

/// The one that `FINEGRAIN_ISA` forces, or all of this CPU. `FINEGRAIN_REQUIRE_ISA=NAME` makes the absence of an
/// instruction set a failure; without it the absent are named.
pub fn available() -> Vec<Isa> {
    if let Ok(name) = std::env::var("FINEGRAIN_REQUIRE_ISA") {
        name.parse::<Isa>().unwrap().checked().unwrap();
    }
    if std::env::var_os("FINEGRAIN_ISA").is_some() {
        return vec![Isa::active().unwrap()];
    }
    let (has, lacks): (Vec<Isa>, Vec<Isa>) = Isa::ALL.iter().partition(|isa| isa.is_available());
    for isa in lacks {
        eprintln!("skipped: this CPU lacks {isa}");
    }
    has
}
