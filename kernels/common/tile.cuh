// Moving rows between global memory and registers in 16-byte accesses.
//
// A warp works on four segments of 128 elements (tiles of one row each) at a time:
//
//   wide side (f32 or bf16)      lane l of a round holds 16 bytes: E = 4 or 8 elements. A segment is 128 / E lanes, a
//                                round is E / 4 segments, the four segments are 16 / E rounds. Fully coalesced.
//   narrow side (FP8 codes)      lane l holds 16 codes of one segment: a segment is 8 lanes. Fully coalesced.
//
// transpose_words turns the one into the other by shuffles among 2 or 4 neighbouring lanes, and is its own inverse.
// Chunks that cross the end of a row, and all chunks of rows that do not start at 16-byte boundaries, go element by
// element; elements beyond the end read as zero and are not written.
#pragma once

#include "scale.cuh"

constexpr i32 GRANULE = 128;           // elements of a tile, rows and columns of a block
constexpr i32 SEGMENTS = 4;            // tiles a warp holds at a time
constexpr i32 CHUNK_BYTES = 16;        // one global access
constexpr i32 CODES_A_CHUNK = 16;      // FP8 codes in it
constexpr i32 LANES_A_CODE_ROW = GRANULE / CODES_A_CHUNK;

struct Words4 {
    u32 w[4];
};

// One 16-byte access. The built-in vector type keeps the compiler from splitting it; the load takes the read-only path.
__device__ __forceinline__ Words4 load_16(const void* from) {
    const uint4 v = __ldg((const uint4*)from);
    return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ void store_16(void* to, const Words4& m) { *(uint4*)to = make_uint4(m.w[0], m.w[1], m.w[2], m.w[3]); }

// A row-major matrix; ld is the distance of its rows in elements.
template <class T>
struct MatrixView {
    T* data;
    i64 ld;
    i32 rows;
    i32 cols;

    // Whether every row starts at a 16-byte boundary. The same for the whole grid.
    __device__ __forceinline__ bool aligned() const {
        return (((u64)data | (u64)ld * sizeof(T)) & (CHUNK_BYTES - 1)) == 0;
    }

    __device__ __forceinline__ T* at(i32 row, i32 col) const { return data + (i64)row * ld + col; }
};

// bf16 travels as its bit pattern.
struct Bf16 {
    u16 bits;
};

template <class T>
constexpr i32 ELEMENTS = CHUNK_BYTES / (i32)sizeof(T);

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(Bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Nearest even; NaN becomes 7FC0.
__device__ __forceinline__ u32 bf16_bits(float x) {
    const u32 bits = __float_as_uint(x);
    return is_nan_bits(bits) ? F32_NAN >> 16 : (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

__device__ __forceinline__ void unpack(const Words4& words, float (&v)[4], const float*) {
#pragma unroll
    for (i32 i = 0; i < 4; ++i) v[i] = __uint_as_float(words.w[i]);
}

__device__ __forceinline__ void unpack(const Words4& words, float (&v)[8], const Bf16*) {
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
        v[2 * i] = __uint_as_float(words.w[i] << 16);
        v[2 * i + 1] = __uint_as_float(words.w[i] & 0xFFFF0000u);
    }
}

// The chunk of ELEMENTS<T> elements at (row, col), as f32; zero beyond the matrix.
template <class T>
__device__ __forceinline__ void load_chunk(const MatrixView<const T>& m, bool aligned, i32 row, i32 col,
                                           float (&v)[ELEMENTS<T>]) {
    constexpr i32 E = ELEMENTS<T>;
    if (row < m.rows && aligned && col + E <= m.cols) {
        unpack(load_16(m.at(row, col)), v, (const T*)nullptr);
    } else {
#pragma unroll
        for (i32 i = 0; i < E; ++i) {
            v[i] = row < m.rows && col + i < m.cols ? to_f32(*m.at(row, col + i)) : 0.0f;
        }
    }
}

// The 16 codes at (row, col); zero beyond the matrix.
__device__ __forceinline__ Words4 load_codes(const MatrixView<const u8>& m, bool aligned, i32 row, i32 col) {
    if (row < m.rows && aligned && col + CODES_A_CHUNK <= m.cols) return load_16(m.at(row, col));
    Words4 words;
#pragma unroll
    for (i32 w = 0; w < 4; ++w) {
        u32 word = 0;
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const i32 c = col + 4 * w + i;
            if (row < m.rows && c < m.cols) word |= (u32)*m.at(row, c) << 8 * i;
        }
        words.w[w] = word;
    }
    return words;
}

// Writes the 16 codes at (row, col), as far as they lie in the matrix.
__device__ __forceinline__ void store_codes(const MatrixView<u8>& m, bool aligned, i32 row, i32 col, const Words4& words) {
    if (row >= m.rows) return;
    if (aligned && col + CODES_A_CHUNK <= m.cols) {
        store_16(m.at(row, col), words);
        return;
    }
#pragma unroll
    for (i32 w = 0; w < 4; ++w) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const i32 c = col + 4 * w + i;
            if (c < m.cols) *m.at(row, c) = (u8)(words.w[w] >> 8 * i);
        }
    }
}

// Exchanges 32 bits with the lane whose number differs in `mask`: gives `mine` of it, as both name theirs.
__device__ __forceinline__ u32 exchange(u32 mine, i32 mask) { return __shfl_xor_sync(ALL_LANES, mine, mask); }

// Four rounds of one word (E = 4): lane 4q + t gives its words of rounds 0…3 and gets round t's words of lanes 4q … 4q + 3.
__device__ __forceinline__ Words4 transpose_words(const u32 (&a)[4][1], i32 lane) {
    Words4 m = {{a[0][0], a[1][0], a[2][0], a[3][0]}};
    const bool odd = lane & 1;
#pragma unroll
    for (i32 i = 0; i < 4; i += 2) {
        const u32 other = exchange(odd ? m.w[i] : m.w[i + 1], 1);
        m.w[i] = odd ? other : m.w[i];
        m.w[i + 1] = odd ? m.w[i + 1] : other;
    }
    const bool upper = lane & 2;
#pragma unroll
    for (i32 i = 0; i < 2; ++i) {
        const u32 other = exchange(upper ? m.w[i] : m.w[i + 2], 2);
        m.w[i] = upper ? other : m.w[i];
        m.w[i + 2] = upper ? m.w[i + 2] : other;
    }
    return m;
}

// Two rounds of two words (E = 8): lane 2q + t gets round t's words of lanes 2q and 2q + 1.
__device__ __forceinline__ Words4 transpose_words(const u32 (&a)[2][2], i32 lane) {
    const bool odd = lane & 1;
    Words4 m;
#pragma unroll
    for (i32 i = 0; i < 2; ++i) {
        const u32 other = exchange(odd ? a[0][i] : a[1][i], 1);
        m.w[i] = odd ? other : a[0][i];
        m.w[i + 2] = odd ? a[1][i] : other;
    }
    return m;
}

// The inverses: 16 codes of one segment to the words of each round.
__device__ __forceinline__ void split_words(const Words4& m, i32 lane, u32 (&a)[4][1]) {
    const u32 rows[4][1] = {{m.w[0]}, {m.w[1]}, {m.w[2]}, {m.w[3]}};
    const Words4 t = transpose_words(rows, lane);
#pragma unroll
    for (i32 i = 0; i < 4; ++i) a[i][0] = t.w[i];
}

__device__ __forceinline__ void split_words(const Words4& m, i32 lane, u32 (&a)[2][2]) {
    const u32 rows[2][2] = {{m.w[0], m.w[1]}, {m.w[2], m.w[3]}};
    const Words4 t = transpose_words(rows, lane);
#pragma unroll
    for (i32 i = 0; i < 4; ++i) a[i / 2][i % 2] = t.w[i];
}

// Which segment and which part of it a lane holds, on the wide side in round r and on the narrow side.
template <i32 E>
struct Lanes {
    static constexpr i32 ROUNDS = 16 / E;
    static constexpr i32 WORDS = E / 4;
    static constexpr i32 A_SEGMENT = GRANULE / E;
    static constexpr i32 SEGMENTS_A_ROUND = SEGMENTS / ROUNDS;

    static __device__ __forceinline__ i32 wide_segment(i32 r, i32 lane) { return r * SEGMENTS_A_ROUND + lane / A_SEGMENT; }
    static __device__ __forceinline__ i32 wide_col(i32 lane) { return lane % A_SEGMENT * E; }
    static __device__ __forceinline__ i32 narrow_segment(i32 lane) {
        return lane % ROUNDS * SEGMENTS_A_ROUND + lane / A_SEGMENT;
    }
    static __device__ __forceinline__ i32 narrow_col(i32 lane) {
        return lane % A_SEGMENT / ROUNDS * CODES_A_CHUNK;
    }

    // The largest of the lanes that share a segment, known to all of them.
    static __device__ __forceinline__ u32 amax_of_segment(u32 amax) {
#pragma unroll
        for (i32 mask = A_SEGMENT / 2; mask > 0; mask /= 2) amax = max(amax, exchange(amax, mask));
        return amax;
    }

    // Whether one of the lanes that share a segment says so, known to all of them.
    static __device__ __forceinline__ bool any_of_segment(bool mine, i32 lane) {
        const u32 segment = (u32)((1ull << A_SEGMENT) - 1) << lane / A_SEGMENT * A_SEGMENT;
        return __ballot_sync(ALL_LANES, mine) & segment;
    }
};

// The codes of a chunk. Gives whether one may be zero.
template <i32 E>
__device__ __forceinline__ bool encode_chunk(const float (&v)[E], float factor, const Recipe& recipe, u32 (&words)[E / 4]) {
    bool zeros = false;
#pragma unroll
    for (i32 w = 0; w < E / 4; ++w) {
        const float x[4] = {v[4 * w], v[4 * w + 1], v[4 * w + 2], v[4 * w + 3]};
        words[w] = encode4(x, factor, recipe);
        zeros |= has_zeros(words[w]);
    }
    return zeros;
}

// Counts the first `valid` elements of a chunk.
template <i32 E>
__device__ __forceinline__ void count_chunk(Counts& counts, const float (&v)[E], float factor, const Recipe& recipe, i32 valid) {
#pragma unroll
    for (i32 w = 0; w < E / 4; ++w) {
        const float x[4] = {v[4 * w], v[4 * w + 1], v[4 * w + 2], v[4 * w + 3]};
        float p[4];
#pragma unroll
        for (i32 i = 0; i < 4; ++i) p[i] = payload_of(x[i], factor, recipe);
        count4(counts, x, p, recipe.cast, valid - 4 * w);
    }
}

template <i32 E>
__device__ __forceinline__ bool has_nan(const float (&v)[E]) {
    bool nan = false;
#pragma unroll
    for (i32 i = 0; i < E; ++i) nan |= v[i] != v[i];
    return nan;
}

template <i32 E>
__device__ __forceinline__ u32 amax_of_chunk(const float (&v)[E], const Recipe& recipe) {
    u32 amax = 0;
#pragma unroll
    for (i32 i = 0; i < E; ++i) amax = max(amax, amax_bits(v[i], recipe));
    return amax;
}

// Quantises four tiles of 1×128, numbered row by row from `first` on, by one warp. `load(row, col, v)` gives the chunk of E
// elements at (row, col), zero beyond the matrix; E must be 4 or 8.
template <i32 E, class Load>
__device__ __forceinline__ void quantize_tiles(const Load& load, const MatrixView<u8>& codes, const ScaleGrid& scales,
                                               const Recipe& recipe, u32 first, u32 tiles_a_row, u64* stats) {
    using L = Lanes<E>;
    const i32 lane = threadIdx.x % LANES;
    const u32 tiles = codes.rows * tiles_a_row;  // below 2^31: the host sees to it
    u32 words[L::ROUNDS][L::WORDS];
    float v[L::ROUNDS][E];
    i32 row[L::ROUNDS], tile[L::ROUNDS];
#pragma unroll
    for (i32 r = 0; r < L::ROUNDS; ++r) {
        const u32 index = first + L::wide_segment(r, lane);
        row[r] = index < tiles ? (i32)(index / tiles_a_row) : codes.rows;
        tile[r] = (i32)(index % tiles_a_row);
        load(row[r], tile[r] * GRANULE + L::wide_col(lane), v[r]);
    }
    u32 granules = 0;
    bool look_again = false;
#pragma unroll
    for (i32 r = 0; r < L::ROUNDS; ++r) {
        const u32 amax = L::amax_of_segment(amax_of_chunk<E>(v[r], recipe));
        const GranuleScale g = granule_scale(amax, recipe);
        if (lane % L::A_SEGMENT == 0 && row[r] < codes.rows) store_scale(scales, row[r], tile[r], g.scale);
        const bool nan = L::any_of_segment(has_nan<E>(v[r]), lane);
        if (row[r] < codes.rows && lane % L::A_SEGMENT == 0) granules += count_granule(amax, nan, recipe.floor);
        const bool zeros = encode_chunk<E>(v[r], g.factor, recipe, words[r]);
        look_again |= (zeros && amax != 0) | is_loud(amax, nan, g.factor, recipe);
    }
    const Words4 chunk = transpose_words(words, lane);
    const u32 index = first + L::narrow_segment(lane);
    if (index < tiles) {
        const i32 col = (i32)(index % tiles_a_row) * GRANULE + L::narrow_col(lane);
        store_codes(codes, codes.aligned(), (i32)(index / tiles_a_row), col, chunk);
    }
    add_granules(stats, granules);
    if (!__any_sync(ALL_LANES, look_again)) return;
    Counts counts = {0, 0, 0};
#pragma unroll 1
    for (i32 r = 0; r < L::ROUNDS; ++r) {
        const u32 index = first + L::wide_segment(r, lane);
        const i32 row = index < tiles ? (i32)(index / tiles_a_row) : codes.rows;
        const i32 col = (i32)(index % tiles_a_row) * GRANULE + L::wide_col(lane);
        float v[E];
        load(row, col, v);
        const GranuleScale g = granule_scale(L::amax_of_segment(amax_of_chunk<E>(v, recipe)), recipe);
        count_chunk<E>(counts, v, g.factor, recipe, row < codes.rows ? codes.cols - col : 0);
    }
    add_elements(stats, counts);
}
