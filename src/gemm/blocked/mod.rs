//! The blocked backend: the `f32` model at the speed of the CPU's instruction set.
//!
//! Codes are decoded while they are packed, once for each block of D; a microkernel keeps a microtile of partial sums in
//! registers over an interval, k ascending, and promotes it with the scales into f32 at the interval's end. Vectors run
//! over N, never over K, so each lane is the reference's scalar loop.
//!
//! Loops, from the outside (names as in Goto's algorithm): jc and ic over blocks of D that threads take; pc over K in
//! steps of KC, where the block's A is packed for the second-level cache; jr over panels of B, each packed for the
//! first-level cache just before it is used; ir over microtiles. With few rows (decoding a token) A is packed once for all
//! of K and the panels run outside, so that weights are read once, in order. There, sums of several promotion intervals lie
//! side by side in a register (`spans`, `quads`); where a chain is not promoted, and for what is left of K, its lanes are
//! columns as elsewhere (`stream`).
//!
//! Kernels are compiled into their caller, one for each instruction set, but for the microtiles of `quads`, which need all
//! registers. In debug builds all are functions, since there the frame of all of them together would not fit a thread's stack.
//!
//! Scratch is at most about 5 MiB a thread, and 8 MiB where few rows are packed at once, whatever M, N and K.

#![forbid(unsafe_code)]

mod few;
mod pack;
mod plan;
mod quads;
mod spans;
mod stream;
mod tile;

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::bf16;

use self::pack::Source;
use self::plan::{Block, Plan};
use self::stream::Squares;
use self::tile::{Panels, STEPS};
use super::accumulation::Model;
use super::backend::{GemmBackend, GemmPlan, Output};
use super::buffer::Buffer;
use super::problem::GemmProblem;
use super::reference::{NAN, products_are_exact};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatMut;
use crate::parallel::{self, Watch};
use crate::scaled::{CodesRef, ScaledRef};
use crate::simd::{Convert, Decoder, Isa, OpClass, Simd, Work, isa_for};

/// Dense `f32` GEMM over E4M3, E5M2, BF16 and the 6- and 4-bit formats, in any mix, with any scales and promotion.
///
/// ```
/// use finegrain::gemm::{Blocked, GemmBackend, GemmProblem, Output, Reference};
/// use finegrain::matrix::Matrix;
/// use finegrain::parallel::Watch;
/// use finegrain::quant::{Quantizer, Recipe};
/// let x = Matrix::from_fn(5, 300, |i, j| (i * 31 + j * 17) as f32 % 7.0 - 3.0);
/// let q = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view())?;
/// let problem = GemmProblem::nt(q.view(), q.view())?;
/// let (mut fast, mut slow) = (Matrix::filled(5, 5, 0.0), Matrix::filled(5, 5, 0.0));
/// Blocked::default().run(&problem, Output::F32(fast.view_mut()), &Watch::NONE)?;
/// Reference.run(&problem, Output::F32(slow.view_mut()), &Watch::NONE)?;
/// assert_eq!(fast, slow);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Blocked {
    isa: Option<Isa>,
}

impl Blocked {
    /// The backend on the [active](Isa::active) instruction set.
    pub const AUTO: Blocked = Blocked { isa: None };

    /// The backend on a given instruction set of choice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this CPU lacks it.
    pub fn on(isa: Isa) -> Result<Blocked> {
        Ok(Blocked { isa: Some(isa.checked()?) })
    }

    /// The instruction set that the problem would run on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend does not compute it.
    pub fn isa_for(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        match self.supporting_isa(problem)? {
            Isa::Avx512Bf16 if !pairs_are_exact(problem) => Ok(Isa::Avx512),
            isa => Ok(isa),
        }
    }

    /// The same without a look at the data, which decides only between the two AVX-512 sets.
    fn supporting_isa(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        let op = OpClass::Gemm { m: problem.m(), n: problem.n(), k: problem.k() };
        let isa = self.isa.map_or_else(|| isa_for(op), Ok)?;
        let (a, b) = (problem.a(), problem.b());
        if problem.accumulation().model() != Model::F32 {
            let accumulation = problem.accumulation();
            return Err(Error::Unsupported(format!("backend blocked sums in f32, not as {accumulation}")));
        }
        for (name, x) in [("A", a), ("B", b)] {
            if pack::Source::new(x).is_none() || cfg!(target_endian = "big") {
                return Err(Error::Unsupported(format!(
                    "backend blocked does not decode {name} in {}",
                    x.format()
                )));
            }
        }
        if isa == Isa::Scalar && !products_are_exact(a.format(), b.format()) {
            return Err(Error::Unsupported(format!(
                "{} x {} needs fused multiply-adds, which instruction set scalar lacks",
                a.format(),
                b.format()
            )));
        }
        Ok(isa)
    }
}

/// Whether no operand, product or sum can be subnormal, so that the flushing of VDPBF16PS never shows: every sum is a
/// multiple of the product of the operands' smallest steps.
fn pairs_are_exact(problem: &GemmProblem<'_>) -> bool {
    let starts_at_zero = !(problem.is_bare_chain() && problem.addend().is_some());
    let steps = smallest_step(problem.a()) + smallest_step(problem.b());
    starts_at_zero && steps >= Format::F32.spec().emin()
}

/// An exponent e such that every finite code is a multiple of 2^e; what BF16 holds is looked at.
fn smallest_step(x: &ScaledRef<'_>) -> i32 {
    let spec = x.format().spec();
    match x.codes() {
        CodesRef::Words(m) if x.format() == Format::Bf16 => {
            // −0 and +0 have no step; subnormals are among the smallest.
            let field = |&c: &u16| if c & 0x7FFF == 0 { u16::MAX } else { c & 0x7F80 };
            let smallest = m.iter_rows().map(|row| row.iter().map(field).min().unwrap_or(u16::MAX)).min();
            match smallest {
                None | Some(u16::MAX) => 0,
                Some(field) => i32::from(field >> 7).max(1) - spec.bias - spec.mantissa_bits as i32,
            }
        }
        _ => spec.quantum_floor(),
    }
}

impl GemmBackend for Blocked {
    fn name(&self) -> &'static str {
        "blocked"
    }

    fn models(&self) -> Vec<Model> {
        vec![Model::F32]
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        let isa = self.isa_for(problem)?;
        Ok(Box::new(OnIsa { plan: Plan::new(problem, isa), isa }))
    }
}

/// A plan and the instruction set that it was made for.
struct OnIsa<'p> {
    plan: Plan<'p>,
    isa: Isa,
}

impl fmt::Display for OnIsa<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { mr, width, blocks, row_cuts, col_cuts, streams_b, .. } = &self.plan;
        let (rows, cols) = (row_cuts.len() - 1, col_cuts.len() - 1);
        let how = if *streams_b { "B streamed" } else { "B packed" };
        let blocks = blocks.len();
        write!(
            f,
            "blocked on {}: microtiles of {mr}×{width}, {how}, {rows}×{cols} blocks of D, {blocks} of K",
            self.isa
        )
    }
}

impl GemmPlan for OnIsa<'_> {
    fn backend(&self) -> &'static str {
        "blocked"
    }

    fn isa(&self) -> Option<Isa> {
        Some(self.isa)
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        let OnIsa { plan, isa } = self;
        match out {
            Output::F32(m) => run(plan, *isa, tasks(plan, m, Parts::F32), watch),
            Output::Bf16(m) => run(plan, *isa, tasks(plan, m, Parts::Bf16), watch),
        }
    }
}

/// A block of D: its rows and columns, and where they go.
struct Task<'d> {
    rows: Range<usize>,
    cols: Range<usize>,
    out: Parts<'d>,
}

/// The parts of D's rows that a task computes. What is stored is chosen here and not by a type: the kernels need not be
/// compiled for each.
enum Parts<'d> {
    F32(Vec<&'d mut [f32]>),
    Bf16(Vec<&'d mut [bf16]>),
}

/// Cuts D into the plan's blocks.
fn tasks<'d, T>(
    plan: &Plan<'_>,
    out: MatMut<'d, T>,
    parts: impl Fn(Vec<&'d mut [T]>) -> Parts<'d>,
) -> Vec<Task<'d>> {
    let blocks = out.into_blocks(&plan.row_cuts, &plan.col_cuts).into_iter();
    blocks.map(|block| Task { rows: block.rows, cols: block.cols, out: parts(block.parts) }).collect()
}

fn run(plan: &Plan<'_>, isa: Isa, tasks: Vec<Task<'_>>, watch: &Watch<'_>) -> Result<()> {
    let packed = plan.streams_b.then(|| few::Rows::pack(plan, isa));
    // What one task has used serves the next of its thread.
    let idle: Mutex<Vec<Scratch>> = Mutex::default();
    let of_idle = |scratch: &mut Vec<Scratch>| scratch.pop().unwrap_or_default();
    parallel::for_each_part(watch, tasks, &|_, mut task: Task<'_>| {
        let mut scratch = of_idle(&mut idle.lock().unwrap_or_else(PoisonError::into_inner));
        isa.run(Multiply { plan, packed: packed.as_ref(), task: &mut task, scratch: &mut scratch });
        idle.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        watch.report((task.rows.len() * task.cols.len()) as u64 * plan.problem.k() as u64);
    })
}

/// Packed rows of A over some blocks of K, and their scales.
#[derive(Default)]
struct Rows {
    packed: Buffer,
    /// Rows of a microtile and more: those packed, rounded up.
    rows: usize,
    /// For each segment, those of all rows.
    scales: Vec<f32>,
}

impl Rows {
    /// The rows over the block at place `i` of those packed.
    fn block(&self, i: usize) -> &[[u32; STEPS]] {
        let (rows, _) = self.packed.as_slice().as_chunks();
        &rows[i * self.rows..][..self.rows]
    }
}

/// Packs rows of A.
struct PackRows<'p> {
    plan: &'p Plan<'p>,
    rows: Range<usize>,
    blocks: &'p [Block],
    packed: &'p mut Rows,
}

impl Work for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (plan, Rows { packed, rows, scales }) = (self.plan, self.packed);
        *rows = self.rows.len().next_multiple_of(plan.mr);
        packed.reserve(self.blocks.len() * *rows * STEPS + Source::EXCESS);
        scales.resize(self.blocks.iter().map(|b| b.segments.len()).sum::<usize>() * *rows, 1.0);
        let mut scales = &mut scales[..];
        for (i, block) in self.blocks.iter().enumerate() {
            let segments = &plan.segments[block.segments.clone()];
            let out = &mut packed.as_mut_slice()[i * *rows * STEPS..];
            let padded = self.rows.start..self.rows.start + *rows;
            plan.a.pack_rows(s, padded, segments.iter().map(|x| x.k.clone()), out);
            for segment in segments {
                let of_segment;
                (of_segment, scales) = scales.split_at_mut(*rows);
                plan.problem.a().scales_at(self.rows.clone(), segment.k.start, of_segment);
            }
        }
    }
}

/// What a thread needs besides its part of D.
#[derive(Default)]
struct Scratch {
    a: Rows,
    panel: Buffer,
    decoded: quads::Decoded,
    /// For each segment of the block at hand, those of a panel's columns.
    panel_scales: Vec<f32>,
    /// Promoted sums, microtile after microtile, those of a panel after one another.
    acc: Buffer,
    /// Sums of intervals that are longer than a block.
    cut: Buffer,
    /// Sums of intervals side by side.
    partial: Buffer,
    /// For each interval of the spans, those of a register of columns.
    span_scales: Vec<f32>,
}

/// Computes a block of D.
struct Multiply<'p, 'd> {
    plan: &'p Plan<'p>,
    /// A, where it is packed once for all.
    packed: Option<&'p few::Rows>,
    task: &'p mut Task<'d>,
    scratch: &'p mut Scratch,
}

impl Work for Multiply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(mut self, s: S) {
        let plan = self.plan;
        let tiles = self.task.rows.len().div_ceil(plan.mr);
        let panels = self.task.cols.len().div_ceil(plan.width);
        let kept = tiles * if self.packed.is_some() { 1 } else { panels } * plan.mr * plan.width;
        self.scratch.acc.reserve(kept);
        if plan.is_cut && !plan.problem.is_bare_chain() {
            self.scratch.cut.reserve(kept);
        }
        if plan.blocks.is_empty() && plan.spans.is_empty() {
            self.nothing_summed(s, tiles, panels);
        } else if let Some(packed) = self.packed {
            self.few(s, packed, tiles, panels);
        } else {
            let mut a = std::mem::take(&mut self.scratch.a);
            for (i, block) in plan.blocks.iter().enumerate() {
                let (rows, blocks) = (self.task.rows.clone(), std::slice::from_ref(block));
                PackRows { plan, rows, blocks, packed: &mut a }.run(s);
                for panel in 0..panels {
                    self.multiply(s, i, &a, panel);
                }
            }
            self.scratch.a = a;
        }
    }
}

/// A microtile of the block of D at hand.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    tile: usize,
    /// Which microtile of the sums it has.
    sums: usize,
}

/// A panel of B over a block of K: packed, or as it lies in memory.
enum B<'b, S: Simd> {
    Packed(&'b [u32]),
    Codes(stream::Codes<'b>, &'b mut Squares<S>),
}

impl Multiply<'_, '_> {
    /// Columns of B in a panel.
    fn panel_cols(&self, panel: usize) -> Range<usize> {
        let start = self.task.cols.start + panel * self.plan.width;
        start..self.task.cols.end.min(start + self.plan.width)
    }

    /// D of an empty K.
    #[inline(always)]
    fn nothing_summed<S: Simd>(&mut self, s: S, tiles: usize, panels: usize) {
        for panel in 0..panels {
            for tile in 0..tiles {
                let place = Place { panel, tile, sums: 0 };
                self.scratch.acc.as_mut_slice::<f32>().fill(0.0);
                self.enter(place);
                self.finish(s, place);
            }
        }
    }

    /// One panel of B over block `index` of K, and all rows.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, s: S, index: usize, a: &Rows, panel: usize) {
        let plan = self.plan;
        let (block, cols) = (&plan.blocks[index], self.panel_cols(panel));
        let mut packed = std::mem::take(&mut self.scratch.panel);
        packed.reserve(block.steps * plan.width);
        let mut step = 0;
        for segment in &plan.segments[block.segments.clone()] {
            let out = &mut packed.as_mut_slice()[step * plan.width..];
            plan.b.pack_panel(s, cols.clone(), segment.k.clone(), plan.width, out);
            step += segment.steps;
        }
        self.load_panel_scales(block, &cols);
        let tiles = a.rows / plan.mr;
        for tile in 0..tiles {
            let place = Place { panel, tile, sums: panel * tiles + tile };
            self.sum_tile(s, index, a.block(0), (&a.scales, a.rows), place, B::Packed(packed.as_slice()));
        }
        self.scratch.panel = packed;
    }

    fn load_panel_scales(&mut self, block: &Block, cols: &Range<usize>) {
        let (plan, scales) = (self.plan, &mut self.scratch.panel_scales);
        let segments = &plan.segments[block.segments.clone()];
        scales.resize(segments.len() * plan.width, 1.0);
        for (segment, scales) in segments.iter().zip(scales.chunks_exact_mut(plan.width)) {
            plan.problem.b().scales_at(cols.clone(), segment.k.start, scales);
        }
    }

    /// A microtile over block `index` of K. `a` and the scales are of all rows, the latter with the rows from segment to
    /// segment.
    #[inline(always)]
    fn sum_tile<S: Simd>(
        &mut self,
        s: S,
        index: usize,
        a: &[[u32; STEPS]],
        (scales_a, rows): (&[f32], usize),
        place: Place,
        b: B<'_, S>,
    ) {
        let (plan, problem) = (self.plan, self.plan.problem);
        let (block, bare) = (&plan.blocks[index], problem.is_bare_chain());
        let size = plan.mr * plan.width;
        if index == 0 {
            self.enter(place);
        }
        let Scratch { panel_scales, acc, cut, .. } = &mut *self.scratch;
        let panels = Panels {
            segments: &plan.segments[block.segments.clone()],
            a: &a[place.tile * plan.mr..],
            scales_a: &scales_a[place.tile * plan.mr..],
            scales_b: panel_scales,
            strides: (rows, plan.width),
            one_column_scale: plan.one_column_scale,
            promotion: problem.accumulation().promotion(),
            fresh: block.fresh && !(bare && problem.addend().is_some()),
        };
        let acc = &mut acc.as_mut_slice::<f32>()[place.sums * size..];
        for line in (size..2 * size).step_by(LINE) {
            s.prefetch(acc, line);
        }
        let sums = cut.as_mut_slice::<f32>().get_mut(place.sums * size..).unwrap_or_default();
        let (sums, acc) = if bare { (&mut acc[..size], &mut [][..]) } else { (sums, &mut acc[..size]) };
        match (b, plan.b.decoder()) {
            (B::Packed(b), _) => tile::multiply(s, plan.mr, panels, b, sums, acc),
            (B::Codes(b, x), Decoder::Bytes(d)) => stream::multiply(s, d, plan.mr, panels, b, x, sums, acc),
            (B::Codes(b, x), Decoder::Words(d)) => stream::multiply(s, d, plan.mr, panels, b, x, sums, acc),
        }
        if index + 1 == plan.blocks.len() {
            self.finish(s, place);
        }
    }

    /// The addend of a bare chain, into the sums of a microtile.
    fn enter(&mut self, place: Place) {
        let (plan, task) = (self.plan, &self.task);
        let Some(c) = plan.problem.addend().filter(|_| plan.problem.is_bare_chain()) else { return };
        let cols = self.panel_cols(place.panel);
        let sums = &mut self.scratch.acc.as_mut_slice::<f32>()[place.sums * plan.mr * plan.width..];
        let rows = task.rows.start + place.tile * plan.mr..task.rows.end;
        for (sums, i) in sums.chunks_exact_mut(plan.width).take(plan.mr).zip(rows) {
            sums[..cols.len()].copy_from_slice(&c.row(i)[cols.clone()]);
        }
    }

    /// The rest of the contract for a microtile.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, place: Place) {
        let (plan, Task { rows, cols, out }) = (self.plan, &mut *self.task);
        let first_row = place.tile * plan.mr;
        let sums = &self.scratch.acc.as_mut_slice::<f32>()[place.sums * plan.mr * plan.width..];
        let end = rows.len().min(first_row + plan.mr);
        let (row, col) = (rows.start + first_row, place.panel * plan.width);
        match out {
            Parts::F32(out) => finish(s, plan, (row, cols.start), col, sums, &mut out[first_row..end]),
            Parts::Bf16(out) => finish(s, plan, (row, cols.start), col, sums, &mut out[first_row..end]),
        }
    }
}

/// Second-level scale, addend, canonical NaN and store of a microtile. `out` holds its rows of a block of D, from
/// D[row, start] on; the microtile begins at column `col` of those.
#[inline(always)]
fn finish<S: Simd, T: Element>(
    s: S,
    plan: &Plan<'_>,
    (row, start): (usize, usize),
    col: usize,
    sums: &[f32],
    out: &mut [&mut [T]],
) {
    let addend = plan.problem.addend().filter(|_| !plan.problem.is_bare_chain());
    let tensor = plan.problem.tensor_scale();
    for (i, (out, sums)) in out.iter_mut().zip(sums.chunks_exact(plan.width)).enumerate() {
        let c = addend.as_ref().map(|c| &c.row(row + i)[start + col..]);
        let parts = out[col..].chunks_mut(S::LANES).take(plan.width / S::LANES);
        for (v, part) in parts.enumerate() {
            let mut x = s.load(&sums[v * S::LANES..]);
            if let Some(tensor) = tensor {
                x = s.mul(x, s.splat(tensor));
            }
            if let Some(c) = c {
                let mut lanes = [0.0; LINE];
                lanes[..part.len()].copy_from_slice(&c[v * S::LANES..][..part.len()]);
                x = s.add(x, s.load(&lanes));
            }
            T::store(s, s.with_nan(x, NAN), part);
        }
    }
}

/// Elements of a cache line, and of the widest register.
const LINE: usize = 16;

/// What D is stored as.
trait Element: Sized {
    /// Into all of `out`, which holds one register or less.
    fn store<S: Simd>(s: S, x: S::F32, out: &mut [Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F32, out: &mut [f32]) {
        if out.len() == S::LANES {
            return s.store(x, out);
        }
        let mut lanes = [0.0; LINE];
        s.store(x, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

impl Element for bf16 {
    /// To nearest even: half of the last place but the least, plus the last bit that stays, carries where it must. It
    /// keeps the canonical NaN.
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F32, out: &mut [bf16]) {
        let bits = s.bits(x);
        let odd = s.and(s.shr(bits, 16), s.splat_u32(1));
        let rounded = s.shr(s.add_u32(bits, s.add_u32(odd, s.splat_u32(0x7FFF))), 16);
        let out = bytemuck::cast_slice_mut(out);
        if out.len() == S::LANES {
            return s.store_u16(rounded, out);
        }
        let mut lanes = [0; LINE];
        s.store_u16(rounded, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}
