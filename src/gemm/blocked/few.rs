//! Few rows: A is packed once, and each weight is read once, in order, and decoded on its way to the sums.

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::plan::Plan;
use super::spans::{self, Rule, Span};
use super::stream::Squares;
use super::tile::STEPS;
use super::{B, Multiply, PackRows, Place, quads};
use crate::simd::{Decoder, Isa, Simd, Work};

/// All of A, packed.
#[derive(Default)]
pub(super) struct Rows {
    /// For each span and tile of [`Plan::tiles`], [`Plan::span_lanes`] elements a row and step; element i has interval i, modulo
    /// the span's.
    spans: Buffer,
    /// For each interval of the spans, those of all rows.
    span_scales: Vec<f32>,
    /// Over the plan's blocks.
    rest: super::Rows,
}

impl Rows {
    pub(super) fn pack(plan: &Plan<'_>, isa: Isa) -> Rows {
        let mut packed = Rows::default();
        isa.run(PackRows { plan, rows: 0..plan.problem.m(), blocks: &plan.blocks, packed: &mut packed.rest });
        packed.pack_spans(plan, isa);
        packed
    }

    /// Packs the spans, some at once.
    fn pack_spans(&mut self, plan: &Plan<'_>, isa: Isa) {
        if plan.spans.is_empty() {
            return;
        }
        let (rows, size) = (plan.problem.m(), plan.span_len());
        self.spans.reserve(plan.spans.len() * size);
        self.span_scales.resize(plan.spans.iter().map(|span| span.intervals).sum::<usize>() * rows, 1.0);
        let mut scales = &mut self.span_scales[..];
        let mut works = Vec::with_capacity(plan.spans.len());
        for (span, out) in plan.spans.iter().zip(self.spans.as_mut_slice().chunks_exact_mut(size)) {
            let of_span;
            (of_span, scales) = scales.split_at_mut(span.intervals * rows);
            works.push(PackSpan { plan, span, out, scales: of_span });
        }
        works.into_par_iter().for_each(|work| isa.run(work));
    }
}

/// Packs A for a span.
struct PackSpan<'p> {
    plan: &'p Plan<'p>,
    span: &'p Span,
    out: &'p mut [u32],
    scales: &'p mut [f32],
}

impl Work for PackSpan<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackSpan { plan, span, out, scales } = self;
        let (rows, interval, lanes) = (plan.problem.m(), plan.problem.interval(), plan.span_lanes);
        let steps = interval.div_ceil(S::PAIR);
        let tiles = plan.tiles();
        let mut unpacked = vec![0; rows * STEPS + super::Source::EXCESS];
        for (i, scales) in scales.chunks_exact_mut(rows).enumerate() {
            let k = span.k + i * interval;
            plan.problem.a().scales_at(0..rows, k, scales);
            plan.a.pack_rows(s, 0..rows, std::iter::once(k..k + interval), &mut unpacked);
            for tile in &tiles {
                let out = &mut out[tile.start * steps * lanes..][..tile.len() * steps * lanes];
                for (m, row) in tile.clone().enumerate() {
                    for lane in (i..lanes).step_by(span.intervals) {
                        let steps = out[m * lanes + lane..].iter_mut().step_by(tile.len() * lanes);
                        unpacked[row * STEPS..].iter().zip(steps).for_each(|(x, out)| *out = *x);
                    }
                }
            }
        }
    }
}

impl Multiply<'_, '_> {
    /// A block of D, panel after panel.
    #[inline(always)]
    pub(super) fn few<S: Simd>(&mut self, s: S, a: &Rows, tiles: usize, panels: usize) {
        let mut squares = Squares::new(s);
        let intervals: usize = self.plan.spans.iter().map(|span| span.intervals).sum();
        self.scratch.span_scales.resize(intervals * S::LANES, 1.0);
        if self.plan.quads {
            let steps = self.plan.problem.interval().div_ceil(S::PAIR);
            self.scratch.decoded.reset::<S>(steps);
        }
        self.scratch.partial.reserve(self.plan.mr * S::LANES * S::LANES);
        for panel in 0..panels {
            if !self.plan.spans.is_empty() {
                self.sum_spans(s, a, panel);
            }
            for tile in 0..tiles {
                self.stream(s, &a.rest, Place { panel, tile, sums: tile }, &mut squares);
            }
        }
    }

    /// The spans of K, for a panel and all rows.
    #[inline(always)]
    fn sum_spans<S: Simd>(&mut self, s: S, a: &Rows, panel: usize) {
        let (plan, problem, interval) = (self.plan, self.plan.problem, self.plan.problem.interval());
        let rows = problem.m();
        let size = plan.span_len();
        let cols = self.panel_cols(panel);
        let super::Scratch { acc, partial, decoded, span_scales, .. } = &mut *self.scratch;
        // The next in the order below, and the codes of those.
        let after = |first: usize, i: usize| {
            if i + 1 < plan.spans.len() { (first, i + 1) } else { (first + S::LANES, 0) }
        };
        let end = self.task.cols.end;
        let codes = |(first, i): (usize, usize)| {
            let (next, next_span) = after(first, i);
            let next = (next - first, plan.spans[next_span].k);
            plan.b.span(first..end.min(first + S::LANES), plan.spans[i].k, interval, next)
        };
        for first in (cols.start..cols.end).step_by(S::LANES) {
            let acc = &mut acc.as_mut_slice::<f32>()[first - cols.start..];
            let cols = first..cols.end.min(first + S::LANES);
            if first == self.task.cols.start || plan.scales_change_at(first) {
                let ks = plan.spans.iter().flat_map(|span| (span.k..).step_by(interval).take(span.intervals));
                for (k, scales) in ks.zip(span_scales.chunks_exact_mut(S::LANES)) {
                    problem.b().scales_at(cols.clone(), k, scales);
                }
            }
            let (mut scales_a, mut scales_b) = (&a.span_scales[..], &span_scales[..]);
            for (i, &span) in plan.spans.iter().enumerate() {
                let rule = Rule {
                    promotion: problem.accumulation().promotion(),
                    scales_a,
                    scales_b,
                    one_column_scale: plan.one_column_scale,
                    fresh: i == 0,
                };
                let next = Some(after(first, i)).filter(|(first, _)| *first < end).map(codes);
                let codes = codes((first, i));
                let (packed, acc) = (&a.spans.as_slice()[i * size..][..size], (&mut *acc, plan.width));
                match plan.b.decoder() {
                    Decoder::Bytes(d) if S::REGISTERS == 32 && plan.quads => {
                        quads::multiply(s, d, rows, rule, packed, codes, next, decoded, acc);
                    }
                    Decoder::Words(d) if S::REGISTERS == 32 && plan.quads => {
                        quads::multiply(s, d, rows, rule, packed, codes, next, decoded, acc);
                    }
                    Decoder::Bytes(d) => spans::multiply(s, d, rows, span, rule, packed, codes, partial, acc),
                    Decoder::Words(d) => spans::multiply(s, d, rows, span, rule, packed, codes, partial, acc),
                }
                (scales_a, scales_b) =
                    (&scales_a[span.intervals * rows..], &scales_b[span.intervals * S::LANES..]);
            }
        }
    }

    /// The blocks of K, for a microtile.
    #[inline(always)]
    fn stream<S: Simd>(&mut self, s: S, a: &super::Rows, place: Place, squares: &mut Squares<S>) {
        let (plan, cols) = (self.plan, self.panel_cols(place.panel));
        let mut segments = 0;
        squares.forget();
        for (i, block) in plan.blocks.iter().enumerate() {
            let start = plan.segments[block.segments.start].k.start;
            let codes = plan.b.codes(cols.clone(), start, plan.ahead);
            let scales = (&a.scales[segments * a.rows..], a.rows);
            self.load_panel_scales(block, &cols);
            self.sum_tile(s, i, a.block(i), scales, place, B::Codes(codes, squares));
            segments += block.segments.len();
        }
        if plan.blocks.is_empty() {
            self.finish(s, place);
        }
    }
}
