// Names of the machine's integers; no header of the host's C++ is needed to compile a kernel.
#pragma once

namespace fg {

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

/// The element formats that the tensor cores multiply here. Their numbers are those that the launcher passes.
enum Format : i32 { E4M3 = 0, E5M2 = 1 };

/// How a partial sum joins the accumulator; the contract's `Promotion`, by the same numbers.
enum Promotion : i32 { SCALES_FIRST = 0, PARTIAL_FIRST = 1, UNFUSED = 2 };

/// How D is stored.
enum Output : i32 { OUT_F32 = 0, OUT_BF16 = 1 };

}  // namespace fg
