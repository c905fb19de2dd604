//! Loads, stores, atomics, ldmatrix' rows and cp.async: everything that touches memory.

use super::block::{Block, Machine, Step};
use super::step::{first, unset_register};
use super::warp::{Copy, Lanes, Warp, lanes};
use crate::fault::FaultKind;
use crate::memory::{Actor, Segment, check_alignment};
use crate::ptx::{Address, Op, Space, Ty, window};
use crate::report;

/// An address and the space it lies in.
fn resolve(space: Space, address: u64) -> (Space, u64) {
    if space == Space::Global && (window::CONST..window::CONST + window::SIZE).contains(&address) {
        return (Space::Const, address);
    }
    if space != Space::Generic {
        return (space, address);
    }
    for (start, space) in
        [(window::SHARED, Space::Shared), (window::LOCAL, Space::Local), (window::PARAM, Space::Param)]
    {
        if (start..start + window::SIZE).contains(&address) {
            return (space, address - start);
        }
    }
    resolve(Space::Global, address)
}

pub(super) fn actor<'a>(block: u32, warp: &'a Warp, lane: usize, strong: bool) -> Actor<'a> {
    Actor {
        block,
        warp: warp.index,
        lane: lane as u8,
        clock: warp.clock,
        seen: &warp.seen,
        strong,
        step: warp.steps,
    }
}

pub(super) fn addresses(warp: &Warp, address: Address, active: u32) -> Step<Lanes> {
    let (base, unset) = warp.read(address.base);
    if unset & active != 0 {
        return Err(unset_register("the address", unset & active));
    }
    Ok(base.map(|b| b.wrapping_add_signed(address.offset)))
}

impl Machine<'_> {
    /// Counts one request of a warp at `pc`.
    pub(super) fn count(
        &mut self,
        pc: usize,
        opcode: &str,
        space: Space,
        addresses: &[Option<u64>],
        bytes: usize,
    ) {
        let line = self.memory_lines[pc].get_or_insert_with(Default::default);
        if line.opcode.is_empty() {
            opcode.clone_into(&mut line.opcode);
        }
        line.requests += 1;
        match space {
            Space::Shared => line.extra_wavefronts += report::extra_wavefronts(addresses, bytes),
            Space::Global => {
                let accesses = addresses.iter().flatten().count() as u64;
                line.sectors += report::sectors(addresses, bytes);
                line.accesses += accesses;
                line.wide_accesses += if bytes == 16 { accesses } else { 0 };
            }
            _ => {}
        }
    }
}

impl Block<'_, '_> {
    pub(super) fn access(&mut self, w: usize, op: &Op, pc: usize, active: u32) -> Step<()> {
        match op {
            Op::Load { space, ty, dst, dst_bits, address, strong } => {
                let addresses = addresses(&self.warps[w], *address, active)?;
                let bytes = ty.bytes() * dst.len();
                self.tally(pc, *space, &addresses, active, bytes);
                let mut values = vec![[0u64; 32]; dst.len()];
                for lane in lanes(active) {
                    let (found, place) = resolve(*space, addresses[lane]);
                    let mut load = || {
                        check_alignment(found, place, bytes)?;
                        let data = self.bytes(w, found, place, bytes, lane, *strong)?;
                        for (value, part) in values.iter_mut().zip(data.chunks(ty.bytes())) {
                            value[lane] = extend(part, *ty, *dst_bits);
                        }
                        Ok(())
                    };
                    load().map_err(|kind| (kind, lane as u8))?;
                }
                for (dst, value) in dst.iter().zip(&values) {
                    if let Some(dst) = dst {
                        self.warps[w].write(*dst, value, 0, active);
                    }
                }
            }
            Op::Store { space, ty, src, address, strong } => {
                let warp = &self.warps[w];
                let addresses = addresses(warp, *address, active)?;
                let sources: Vec<(Lanes, u32)> = src.iter().map(|s| warp.read(*s)).collect();
                let size = ty.bytes();
                self.tally(pc, *space, &addresses, active, size * src.len());
                for lane in lanes(active) {
                    let (found, place) = resolve(*space, addresses[lane]);
                    let fault = |kind| (kind, lane as u8);
                    check_alignment(found, place, size * src.len()).map_err(fault)?;
                    let known = sources.iter().all(|s| s.1 >> lane & 1 == 0);
                    let mut data = [0u8; 64];
                    for (part, (values, _)) in data.chunks_mut(size).zip(&sources) {
                        part.copy_from_slice(&values[lane].to_le_bytes()[..size]);
                    }
                    let data = &data[..size * src.len()];
                    self.put(w, found, place, data, known, lane, *strong).map_err(fault)?;
                }
            }
            Op::Atomic { space, ty, f, dst, address, b, c } => {
                let warp = &self.warps[w];
                let addresses = addresses(warp, *address, active)?;
                let ((b, ub), (c, uc)) = (warp.read(*b), warp.read(*c));
                if (ub | uc) & active != 0 {
                    return Err(unset_register("the atomic's operand", (ub | uc) & active));
                }
                self.tally(pc, *space, &addresses, active, ty.bytes());
                let mut old = [0; 32];
                for lane in lanes(active) {
                    let (found, place) = resolve(*space, addresses[lane]);
                    let mut update = || {
                        check_alignment(found, place, ty.bytes())?;
                        let data = self.bytes(w, found, place, ty.bytes(), lane, true)?;
                        old[lane] = extend(data, *ty, ty.bits());
                        let new = f(old[lane], b[lane], c[lane]).to_le_bytes();
                        self.put(w, found, place, &new[..ty.bytes()], true, lane, true)
                    };
                    update().map_err(|kind| (kind, lane as u8))?;
                }
                if let Some(dst) = dst {
                    self.warps[w].write(*dst, &old, 0, active);
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn tally(&mut self, pc: usize, space: Space, addresses: &Lanes, active: u32, bytes: usize) {
        let Some(lane) = lanes(active).next() else { return };
        let (found, _) = resolve(space, addresses[lane]);
        let places: [Option<u64>; 32] =
            std::array::from_fn(|l| (active >> l & 1 == 1).then(|| resolve(space, addresses[l]).1));
        self.machine.count(pc, &self.kernel.insts[pc].opcode, found, &places, bytes);
    }

    /// Reads, with every check.
    pub(super) fn bytes(
        &mut self,
        w: usize,
        space: Space,
        address: u64,
        len: usize,
        lane: usize,
        strong: bool,
    ) -> Result<&[u8], FaultKind> {
        let warp = &mut self.warps[w];
        let within = |segment: &Segment| segment.offset(address, len);
        match space {
            Space::Global | Space::Generic => {
                let actor = actor(self.index, warp, lane, strong);
                let (segment, at) = self.machine.global.find(address, len)?;
                segment.read(at, len, Some(&actor))
            }
            Space::Shared => {
                let at = within(&self.shared)?;
                self.shared.read(at, len, Some(&actor(self.index, warp, lane, strong)))
            }
            Space::Local => match warp.local.get_mut(lane) {
                Some(segment) => {
                    let at = segment.offset(address, len)?;
                    segment.read(at, len, None)
                }
                None => Err(FaultKind::OutOfBounds { space, address, bytes: len, size: 0 }),
            },
            Space::Param => {
                let at = within(&self.machine.params)?;
                self.machine.params.read(at, len, None)
            }
            Space::Const => {
                let at = within(&self.machine.constants)?;
                self.machine.constants.read(at, len, None)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "who, where, what: none of them belongs to another")]
    fn put(
        &mut self,
        w: usize,
        space: Space,
        address: u64,
        data: &[u8],
        known: bool,
        lane: usize,
        strong: bool,
    ) -> Result<(), FaultKind> {
        let warp = &mut self.warps[w];
        match space {
            Space::Global | Space::Generic => {
                let actor = actor(self.index, warp, lane, strong);
                let (segment, at) = self.machine.global.find(address, data.len())?;
                segment.write(at, data, known, Some(&actor))
            }
            Space::Shared => {
                let at = self.shared.offset(address, data.len())?;
                self.shared.write(at, data, known, Some(&actor(self.index, warp, lane, strong)))
            }
            Space::Local => match warp.local.get_mut(lane) {
                Some(segment) => {
                    let at = segment.offset(address, data.len())?;
                    segment.write(at, data, known, None)
                }
                None => Err(FaultKind::OutOfBounds { space, address, bytes: data.len(), size: 0 }),
            },
            Space::Param | Space::Const => Err(FaultKind::ReadOnly { space, address }),
        }
    }

    /// cp.async and its groups. Nothing moves before a wait asks for it: a kernel that forgets to wait reads what was
    /// there before, and is told so.
    pub(super) fn copy(&mut self, w: usize, op: &Op, pc: usize, active: u32) -> Step<()> {
        match op {
            Op::AsyncCopy { to, from, bytes, copied, ignore } => {
                let warp = &self.warps[w];
                let (to, from) = (addresses(warp, *to, active)?, addresses(warp, *from, active)?);
                let ((copied, uc), (ignore, ui)) = (warp.read(*copied), warp.read_pred(*ignore));
                if (uc | ui) & active != 0 {
                    return Err(unset_register("the number of bytes to copy", (uc | ui) & active));
                }
                let size = *bytes as usize;
                let reads = lanes(active)
                    .filter(|&l| ignore >> l & 1 == 0 && copied[l] as u32 != 0)
                    .fold(0, |mask, l| mask | 1 << l);
                self.tally(pc, Space::Global, &from, reads, size);
                self.tally_shared(pc, &to, active, size);
                for lane in lanes(active) {
                    let fault = |kind| (kind, lane as u8);
                    let (_, from) = resolve(Space::Global, from[lane]);
                    let copied = if ignore >> lane & 1 == 1 { 0 } else { copied[lane] as u32 };
                    if copied > *bytes {
                        let what = format!("a cp.async that reads {copied} of {bytes} bytes");
                        return Err(fault(FaultKind::Unsupported(what)));
                    }
                    check_alignment(Space::Shared, to[lane], size).map_err(fault)?;
                    check_alignment(Space::Global, from, size).map_err(fault)?;
                    if copied != 0 {
                        self.machine.global.find(from, copied as usize).map_err(fault)?;
                    }
                    let at = self.shared.offset(to[lane], size).map_err(fault)?;
                    let warp = &mut self.warps[w];
                    let actor = actor(self.index, warp, lane, false);
                    self.shared.begin_copy(at, size, &actor).map_err(fault)?;
                    let group = warp.committed[lane];
                    let (bytes, copied) = (size as u8, copied as u8);
                    warp.copies.push(Copy { lane: lane as u8, group, to: at, from, bytes, copied });
                }
            }
            Op::CommitGroup => {
                let warp = &mut self.warps[w];
                lanes(active).for_each(|lane| warp.committed[lane] += 1);
            }
            Op::WaitGroup(pending) => {
                let warp = &mut self.warps[w];
                let lands = |c: &Copy| {
                    let committed = warp.committed[usize::from(c.lane)];
                    let due = pending.is_none_or(|n| c.group + n < committed);
                    active >> c.lane & 1 == 1 && due
                };
                let (landing, rest): (Vec<Copy>, Vec<Copy>) = warp.copies.iter().partition(|c| lands(c));
                warp.copies = rest;
                for c in landing {
                    self.land(w, c).map_err(|kind| (kind, c.lane))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn tally_shared(&mut self, pc: usize, to: &Lanes, active: u32, bytes: usize) {
        let places: [Option<u64>; 32] = std::array::from_fn(|l| (active >> l & 1 == 1).then_some(to[l]));
        if let Some(line) = &mut self.machine.memory_lines[pc] {
            line.extra_wavefronts += report::extra_wavefronts(&places, bytes);
        }
    }

    fn land(&mut self, w: usize, c: Copy) -> Result<(), FaultKind> {
        let mut data = [0u8; 16];
        let (size, copied) = (usize::from(c.bytes), usize::from(c.copied));
        if copied != 0 {
            let read = self.bytes(w, Space::Global, c.from, copied, usize::from(c.lane), false)?;
            data[..copied].copy_from_slice(read);
        }
        let actor = actor(self.index, &self.warps[w], usize::from(c.lane), false);
        self.shared.end_copy(c.to, &data[..size], &actor)
    }

    /// The rows that ldmatrix reads: lane i's address is row i of all matrices in order.
    pub(super) fn matrix_rows(
        &mut self,
        w: usize,
        address: Address,
        matrices: usize,
        pc: usize,
    ) -> Step<Vec<[u8; 16]>> {
        let places = addresses(&self.warps[w], address, u32::MAX >> (32 - 8 * matrices))?;
        let active = u32::MAX >> (32 - 8 * matrices);
        self.tally(pc, Space::Shared, &places, active, 16);
        let mut rows = Vec::with_capacity(8 * matrices);
        for lane in lanes(active) {
            let (_, place) = resolve(Space::Shared, places[lane]);
            let mut load = || {
                check_alignment(Space::Shared, place, 16)?;
                let mut row = [0; 16];
                row.copy_from_slice(self.bytes(w, Space::Shared, place, 16, lane, false)?);
                Ok(row)
            };
            rows.push(load().map_err(|kind| (kind, first(1 << lane)))?);
        }
        Ok(rows)
    }
}

/// Little-endian bytes as a register of `bits`, with the sign where the type has one.
fn extend(bytes: &[u8], ty: Ty, bits: u32) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = u64::from_le_bytes(wide);
    let unused = 64 - ty.bits();
    let value = if ty.is_signed() { ((value << unused) as i64 >> unused) as u64 } else { value };
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}
