//! wgmma: products by four warps that read shared memory on their own and fill registers later.
//!
//! Each warp of a warpgroup computes 16 of the 64 rows. With g = lane / 4, t = lane mod 4 and w the warp in its group:
//!
//! ```text
//! D (64×N)   d[4j + e]: row 16w + g + 8 (e / 2), column 8j + 2t + e mod 2
//! ```
//!
//! A product sets out at `wgmma.mma_async` and is computed when a `wgmma.wait_group` asks for it. In between its operands
//! must not be written, and its accumulators are values that nothing wrote.

use super::access::actor;
use super::block::{Block, Step};
use super::matrix::product;
use super::step::unset_register;
use super::warp::{Lanes, Product, Warp};
use crate::fault::FaultKind;
use crate::ptx::{Op, Src};

/// Rows of D that a warp computes.
const ROWS: usize = 16;
/// Bytes of K in a row, and in one of the units that swizzling moves.
const ROW_BYTES: usize = 32;
const UNIT: usize = 16;

/// A matrix in shared memory, K-major, as the PTX manual describes it:
///
/// ```text
/// bits 0–13    start address / 16
/// bits 16–29   leading dimension byte offset / 16: between units along K, where nothing is swizzled
/// bits 32–45   stride dimension byte offset / 16: between groups of 8 rows
/// bits 49–51   base offset
/// bits 62–63   swizzle: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32
/// ```
#[derive(Clone, Copy, Debug)]
struct Descriptor(u64);

impl Descriptor {
    fn field(self, low: u32) -> u64 {
        (self.0 >> low & 0x3FFF) << 4
    }

    /// The address of unit `unit` of row `row`.
    ///
    /// Rows of a group of 8 follow each other at the width of the swizzle, whose pattern exchanges units by the address
    /// bits from 7 on.
    fn address(self, row: usize, unit: usize) -> u64 {
        let (row, unit) = (row as u64, unit as u64);
        let (width, along, moved) = match self.0 >> 62 {
            0 => (16, self.field(16), 0),
            1 => (128, 16, 7),
            2 => (64, 16, 3),
            _ => (32, 16, 1),
        };
        let place = self.field(0) + row / 8 * self.field(32) + row % 8 * width + unit * along;
        place ^ (place >> 7 & moved) << 4
    }

    /// The addresses of all units of rows `first .. first + rows`, row by row.
    fn units(self, first: usize, rows: usize) -> Result<Vec<u64>, FaultKind> {
        if self.0 >> 49 & 7 != 0 {
            return Err(FaultKind::Unsupported("a matrix descriptor with a base offset".to_owned()));
        }
        Ok((first..first + rows)
            .flat_map(|r| (0..ROW_BYTES / UNIT).map(move |u| self.address(r, u)))
            .collect())
    }
}

impl Block<'_, '_> {
    pub(super) fn warpgroup(&mut self, w: usize, op: &Op, pc: usize, active: u32) -> Step<()> {
        if active != u32::MAX {
            return Err((FaultKind::PartialWarp { active }, active.trailing_zeros().min(31) as u8));
        }
        let warp = &mut self.warps[w];
        match op {
            Op::ProductFence => warp.fenced = true,
            Op::CommitProducts => warp.product_groups += 1,
            Op::WaitProducts(pending) => {
                let due = warp.product_groups.saturating_sub(*pending);
                // What is accumulated after this has been touched in the meantime.
                warp.fenced = false;
                while self.warps[w].products.first().is_some_and(|p| p.group < due) {
                    let product = self.warps[w].products.remove(0);
                    self.finish(w, &product).map_err(|kind| (kind, 0))?;
                }
            }
            Op::Product { .. } => self.set_out(w, op, pc)?,
            _ => {}
        }
        Ok(())
    }

    /// A number that the whole warp must agree on.
    fn agreed(&self, w: usize, src: Src, what: &str) -> Step<u64> {
        let (values, unset) = self.warps[w].read(src);
        if unset != 0 {
            return Err(unset_register(what, unset));
        }
        match values.iter().position(|v| *v != values[0]) {
            Some(lane) => Err((FaultKind::Warpgroup(format!("{what} differs between lanes")), lane as u8)),
            None => Ok(values[0]),
        }
    }

    fn set_out(&mut self, w: usize, op: &Op, pc: usize) -> Step<()> {
        let Op::Product { shape, d, a, b, accumulate } = op else { return Ok(()) };
        let (a, b) = (self.agreed(w, *a, "the descriptor of A")?, self.agreed(w, *b, "the descriptor of B")?);
        let (adds, unset) = self.warps[w].read_pred(*accumulate);
        if unset != 0 {
            return Err(unset_register("the predicate of wgmma", unset));
        }
        let fault = |kind| (kind, 0);
        if adds != 0 && adds != u32::MAX {
            return Err(fault(FaultKind::Warpgroup("the predicate differs between lanes".to_owned())));
        }
        self.same_in_warpgroup(w, (pc, a, b, adds != 0)).map_err(fault)?;

        let warp = &mut self.warps[w];
        let chained = warp.products.iter().any(|p| p.d == *d);
        if !chained {
            if warp.products.iter().any(|p| p.d.iter().any(|r| d.contains(r))) {
                let what = "accumulators that are part of another product's under way";
                return Err(fault(FaultKind::Unsupported(what.to_owned())));
            }
            if !warp.fenced {
                return Err(fault(FaultKind::MissingProductFence));
            }
            let unset = d.iter().fold(0, |unset, r| unset | warp.read(Src::Reg(*r)).1);
            if adds != 0 && unset != 0 {
                return Err(unset_register("the accumulator of wgmma", unset));
            }
        }
        for register in d {
            warp.poison(*register);
        }
        let units_a = Descriptor(a).units(w % 4 * ROWS, ROWS).map_err(fault)?;
        let units_b = Descriptor(b).units(0, d.len() * 2).map_err(fault)?;
        let warp = &self.warps[w];
        // A warp knows its own fences, and of others those before a barrier that both have passed.
        let known = |(v, other): (usize, &Warp)| {
            let seen = if v == w { u32::MAX } else { warp.seen[v] };
            other.proxy_fences.map(|fences| fences.known_at(seen))
        };
        let fences: Vec<[u64; 32]> = self.warps.iter().enumerate().map(known).collect();
        let by = actor(self.index, warp, 0, false);
        for &unit in units_a.iter().chain(&units_b) {
            let begin =
                self.shared.offset(unit, UNIT).and_then(|at| self.shared.begin_read(at, UNIT, &by, &fences));
            begin.map_err(fault)?;
        }
        let (d, group, adds) = (d.clone(), warp.product_groups, adds != 0);
        self.warps[w].products.push(Product { shape: *shape, d, a: units_a, b: units_b, adds, group });
        Ok(())
    }

    /// The four warps of a group issue the same products in the same order.
    fn same_in_warpgroup(&mut self, w: usize, issued: (usize, u64, u64, bool)) -> Result<(), FaultKind> {
        let group = w / 4;
        if self.issued.len() <= group {
            self.issued.resize_with(group + 1, Vec::new);
        }
        let (log, warp) = (&mut self.issued[group], &mut self.warps[w]);
        warp.issued += 1;
        match log.get(warp.issued - 1) {
            Some(other) if *other != issued => {
                Err(FaultKind::Warpgroup("its warps issue different products".to_owned()))
            }
            Some(_) => Ok(()),
            None => {
                log.push(issued);
                Ok(())
            }
        }
    }

    /// Computes a product and lets go of its operands and accumulators.
    fn finish(&mut self, w: usize, p: &Product) -> Result<(), FaultKind> {
        let by = actor(self.index, &self.warps[w], 0, false);
        let mut fetch = |units: &[u64]| -> Result<Vec<u8>, FaultKind> {
            let mut bytes = Vec::with_capacity(units.len() * UNIT);
            for &unit in units {
                let at = self.shared.offset(unit, UNIT)?;
                bytes.extend_from_slice(self.shared.end_read(at, UNIT, &by)?);
            }
            Ok(bytes)
        };
        let (a, b) = (fetch(&p.a)?, fetch(&p.b)?);
        let columns = p.d.len() * 2;
        let place =
            |i: usize, lane: usize| (lane / 4 + 8 * (i % 4 / 2)) * columns + i / 4 * 8 + lane % 4 * 2 + i % 2;
        let warp = &mut self.warps[w];
        let mut sums = vec![0.0; ROWS * columns];
        for (i, &register) in p.d.iter().enumerate() {
            let (values, unset) = warp.read(Src::Reg(register));
            if unset != u32::MAX {
                return Err(FaultKind::AccumulatorWritten);
            }
            for lane in 0..if p.adds { 32 } else { 0 } {
                sums[place(i, lane)] = f32::from_bits(values[lane] as u32);
            }
        }
        let model = self.machine.options.wgmma_model;
        let d = product(model, p.shape, columns, &a, &b, &sums)
            .map_err(|e| FaultKind::Unsupported(e.to_string()))?;
        let chained = warp.products.iter().any(|other| other.d == p.d);
        for (i, &register) in p.d.iter().enumerate() {
            let values: Lanes = std::array::from_fn(|lane| u64::from(d[place(i, lane)].to_bits()));
            warp.write(register, &values, 0, u32::MAX);
            if chained {
                warp.poison(register);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(start: u64, leading: u64, stride: u64, swizzle: u64) -> Descriptor {
        Descriptor(start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62)
    }

    /// Byte offsets of the canonical K-major layouts, worked out by hand from the manual's figures.
    #[test]
    fn descriptors_name_the_canonical_layouts() {
        // Core matrices of 8 rows of 16 bytes: 128 bytes each.
        let none = descriptor(0x400, 0x80, 0x100, 0);
        assert_eq!(
            [(0, 0), (1, 0), (0, 1), (8, 0), (9, 1)].map(|(r, u)| none.address(r, u)),
            [0x400, 0x410, 0x480, 0x500, 0x590]
        );
        // 32 bytes: rows 4 … 7 of a group exchange their two units.
        let narrow = descriptor(0x400, 16, 0x100, 3);
        assert_eq!(
            [(0, 1), (3, 0), (4, 0), (4, 1), (8, 0)].map(|(r, u)| narrow.address(r, u)),
            [0x410, 0x460, 0x490, 0x480, 0x500]
        );
        // 64 bytes: the pattern moves on every two rows.
        let middle = descriptor(0x400, 16, 0x200, 2);
        assert_eq!(
            [(1, 1), (2, 0), (4, 0), (6, 1), (8, 0)].map(|(r, u)| middle.address(r, u)),
            [0x450, 0x490, 0x520, 0x5A0, 0x600]
        );
        // 128 bytes: unit u of row r is at place u xor r mod 8, and a start 32 bytes on is two units on.
        let wide = descriptor(0x400, 16, 0x400, 1);
        let further = descriptor(0x420, 16, 0x400, 1);
        for row in 0..64 {
            for unit in 0..2 {
                let at = |u: usize| (0x400 + row * 128 + (u ^ (row % 8)) * 16) as u64;
                assert_eq!(wide.address(row, unit), at(unit));
                assert_eq!(further.address(row, unit), at(unit + 2));
            }
        }
    }

    #[test]
    fn a_base_offset_is_refused() {
        assert!(Descriptor(1 << 49).units(0, 8).is_err());
    }
}
