//! Memory: bytes, which of them were written, and who touched them.

mod shadow;

pub(crate) use shadow::{Actor, Shadow};

use crate::fault::FaultKind;
use crate::ptx::{Space, window};

/// One piece of memory. `base` is the address of its first byte in its space.
pub(crate) struct Segment {
    pub(crate) space: Space,
    pub(crate) base: u64,
    pub(crate) data: Vec<u8>,
    written: Vec<bool>,
    shadow: Shadow,
    /// Bytes that a cp.async is on its way to; empty where there can be none.
    pending: Vec<bool>,
    /// Of shared memory: how many wgmma that are under way read the byte.
    readers: Vec<u16>,
    /// Of shared memory: the byte's last writer.
    writers: Vec<Writer>,
}

/// A thread that wrote, and its warp's step at that time.
#[derive(Clone, Copy, Debug, Default)]
struct Writer {
    step: u64,
    warp: u8,
    lane: u8,
}

impl Segment {
    pub(crate) fn new(space: Space, base: u64, bytes: usize, check_races: bool) -> Segment {
        let pending = if space == Space::Shared { vec![false; bytes] } else { Vec::new() };
        let shadow = Shadow::new(bytes, check_races);
        let shared = pending.len();
        let (readers, writers) = (vec![0; shared], vec![Writer::default(); shared]);
        Segment {
            space,
            base,
            data: vec![0; bytes],
            written: vec![false; bytes],
            shadow,
            pending,
            readers,
            writers,
        }
    }

    /// Forgets who touched what: a new launch.
    pub(crate) fn forget_accesses(&mut self, check_races: bool) {
        self.shadow = Shadow::new(self.data.len(), check_races);
    }

    /// The offset of an access that is within and aligned.
    pub(crate) fn offset(&self, address: u64, len: usize) -> Result<usize, FaultKind> {
        let at = address.wrapping_sub(self.base);
        if at.checked_add(len as u64).is_none_or(|end| end > self.data.len() as u64) {
            let (space, size) = (self.space, self.data.len());
            return Err(FaultKind::OutOfBounds { space, address, bytes: len, size });
        }
        Ok(at as usize)
    }

    pub(crate) fn read(
        &mut self,
        at: usize,
        len: usize,
        actor: Option<&Actor<'_>>,
    ) -> Result<&[u8], FaultKind> {
        self.untouched(at, len)?;
        if let Some(i) = self.written[at..at + len].iter().position(|w| !w) {
            let address = self.base + (at + i) as u64;
            return Err(FaultKind::UninitialisedMemory { space: self.space, address });
        }
        if let Some(actor) = actor {
            self.shadow.read(self.space, self.base, at, len, actor)?;
        }
        Ok(&self.data[at..at + len])
    }

    /// `known` says whether the value was ever written itself: memory takes that over.
    pub(crate) fn write(
        &mut self,
        at: usize,
        bytes: &[u8],
        known: bool,
        actor: Option<&Actor<'_>>,
    ) -> Result<(), FaultKind> {
        self.untouched(at, bytes.len())?;
        self.unread(at, bytes.len())?;
        if let Some(actor) = actor {
            if let Some(writers) = self.writers.get_mut(at..at + bytes.len()) {
                writers.fill(Writer { step: actor.step, warp: actor.warp, lane: actor.lane });
            }
            let data = &self.data;
            self.shadow.write(self.space, self.base, at, |i| data[at + i] == bytes[i], bytes.len(), actor)?;
        }
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        self.written[at..at + bytes.len()].fill(known);
        Ok(())
    }

    fn untouched(&self, at: usize, len: usize) -> Result<(), FaultKind> {
        match self.pending.get(at..at + len).and_then(|p| p.iter().position(|p| *p)) {
            Some(i) => Err(FaultKind::PendingCopy { address: self.base + (at + i) as u64 }),
            None => Ok(()),
        }
    }

    fn unread(&self, at: usize, len: usize) -> Result<(), FaultKind> {
        match self.readers.get(at..at + len).and_then(|r| r.iter().position(|r| *r != 0)) {
            Some(i) => Err(FaultKind::PendingRead { address: self.base + (at + i) as u64 }),
            None => Ok(()),
        }
    }

    /// A wgmma that reads these bytes sets out: nobody may write them until it is done. `fences` are the steps of each
    /// warp's lanes at which they last made their writes visible to it.
    pub(crate) fn begin_read(
        &mut self,
        at: usize,
        len: usize,
        actor: &Actor<'_>,
        fences: &[[u64; 32]],
    ) -> Result<(), FaultKind> {
        self.read(at, len, Some(actor))?;
        let visible = |w: &Writer| w.step < fences[usize::from(w.warp)][usize::from(w.lane)];
        if let Some(i) = self.writers[at..at + len].iter().position(|w| !visible(w)) {
            return Err(FaultKind::MissingProxyFence { address: self.base + (at + i) as u64 });
        }
        self.readers[at..at + len].iter_mut().for_each(|r| *r += 1);
        Ok(())
    }

    /// It is done.
    pub(crate) fn end_read(&mut self, at: usize, len: usize, actor: &Actor<'_>) -> Result<&[u8], FaultKind> {
        self.readers[at..at + len].iter_mut().for_each(|r| *r -= 1);
        self.read(at, len, Some(actor))
    }

    /// A cp.async to these bytes sets out: nobody may touch them until it has landed.
    pub(crate) fn begin_copy(&mut self, at: usize, len: usize, actor: &Actor<'_>) -> Result<(), FaultKind> {
        self.untouched(at, len)?;
        self.unread(at, len)?;
        self.shadow.write(self.space, self.base, at, |_| false, len, actor)?;
        self.pending[at..at + len].fill(true);
        Ok(())
    }

    /// It lands.
    pub(crate) fn end_copy(&mut self, at: usize, bytes: &[u8], actor: &Actor<'_>) -> Result<(), FaultKind> {
        self.pending[at..at + bytes.len()].fill(false);
        self.write(at, bytes, true, Some(actor))
    }
}

/// Global memory: allocations, in ascending order, with room between them.
#[derive(Default)]
pub(crate) struct Global {
    allocations: Vec<Segment>,
}

/// Room between allocations, so that a stray access meets nobody else's data.
const GAP: u64 = 1 << 20;
/// What cudaMalloc promises.
const ALIGNMENT: u64 = 256;

impl Global {
    pub(crate) fn alloc(&mut self, bytes: usize) -> u64 {
        let end = self.allocations.last().map_or(window::GLOBAL, |a| a.base + a.data.len() as u64 + GAP);
        let base = end.next_multiple_of(ALIGNMENT);
        self.allocations.push(Segment::new(Space::Global, base, bytes, false));
        base
    }

    pub(crate) fn forget_accesses(&mut self, check_races: bool) {
        self.allocations.iter_mut().for_each(|a| a.forget_accesses(check_races));
    }

    /// The allocation that holds all of the access, and the offset in it.
    pub(crate) fn find(&mut self, address: u64, len: usize) -> Result<(&mut Segment, usize), FaultKind> {
        let after = self.allocations.partition_point(|a| a.base <= address);
        let fault = |nearest| FaultKind::GlobalOutOfBounds { address, bytes: len, nearest };
        let Some(i) = after.checked_sub(1) else { return Err(fault(None)) };
        let segment = &mut self.allocations[i];
        match segment.offset(address, len) {
            Ok(at) => Ok((segment, at)),
            Err(_) => Err(fault(Some((segment.base, segment.data.len())))),
        }
    }
}

/// Every vector access starts at a multiple of its size.
pub(crate) fn check_alignment(space: Space, address: u64, bytes: usize) -> Result<(), FaultKind> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    Err(FaultKind::Misaligned { space, address, bytes })
}
