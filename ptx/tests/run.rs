//! Each family of instructions, control flow and every fault, on PTX written by hand.

use ptx_emulator::{Arg, Device, Fault, FaultKind, Launch, Module, Options, Report};

const HEAD: &str = ".version 8.4\n.target sm_89\n.address_size 64\n";

/// A kernel `k(out)` with one output word a thread: `%r0` at the end; `%rd0` is the thread's output address.
fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.extern .shared .align 16 .b8 dyn[];\n.visible .entry k(.param .u64 out) {{\n\
         .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .b64 %rd<20>; .reg .f64 %fd<4>;\n\
         ld.param.u64 %rd19, [out]; mov.u32 %r39, %tid.x; mad.wide.u32 %rd0, %r39, 4, %rd19;\n{body}\n\
         st.global.u32 [%rd0], %r0;\nDONE: ret; }}"
    )
}

fn launch(source: &str, grid: u32, threads: u32) -> Result<(Vec<u32>, Report), Fault> {
    let module = Module::parse(source).unwrap();
    let mut device = Device::new();
    let out = device.alloc(4 * threads as usize);
    let launch = Launch {
        grid: [grid, 1, 1],
        block: [threads, 1, 1],
        dynamic_shared: 1024,
        args: vec![Arg::Ptr(out)],
    };
    let options = Options { step_limit: 10_000, ..Options::default() };
    let report = device.launch(&module, "k", &launch, &options)?;
    let bytes = device.read(out, 4 * threads as usize).unwrap();
    Ok((bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(), report))
}

fn run(body: &str, threads: u32) -> Vec<u32> {
    launch(&kernel(body), 1, threads).unwrap_or_else(|f| panic!("{f}")).0
}

fn fault(body: &str, threads: u32) -> FaultKind {
    launch(&kernel(body), 1, threads).expect_err("the bug passed").kind
}

#[test]
fn nested_branches_meet_again() {
    // 4 classes of lanes; after both ifs all lanes vote together.
    let got = run(
        "mov.u32 %r0, 0; and.b32 %r1, %r39, 1; setp.eq.u32 %p1, %r1, 0; @%p1 bra EVEN;
         add.u32 %r0, %r0, 1; and.b32 %r2, %r39, 2; setp.ne.u32 %p2, %r2, 0; @!%p2 bra MEET; add.u32 %r0, %r0, 10; bra.uni MEET;
         EVEN: setp.gt.u32 %p3, %r39, 15; @%p3 bra MEET; add.u32 %r0, %r0, 100;
         MEET: activemask.b32 %r3; setp.eq.u32 %p4, %r3, -1; @%p4 add.u32 %r0, %r0, 1000;",
        32,
    );
    for (lane, value) in got.into_iter().enumerate() {
        let want = match lane {
            l if l % 2 == 0 => {
                if l > 15 {
                    0
                } else {
                    100
                }
            }
            l if l & 2 != 0 => 11,
            _ => 1,
        };
        assert_eq!(value, 1000 + want, "lane {lane}");
    }
}

#[test]
fn loops_of_unlike_length_and_early_exits() {
    let got = run(
        "mov.u32 %r0, 0; mov.u32 %r1, 0;
         LOOP: setp.ge.u32 %p1, %r1, %r39; @%p1 bra END;
         mov.u32 %r2, 0; INNER: add.u32 %r0, %r0, 1; add.u32 %r2, %r2, 1; setp.lt.u32 %p2, %r2, %r1; @%p2 bra INNER;
         add.u32 %r1, %r1, 1; bra LOOP;
         END: bar.warp.sync -1; setp.ne.u32 %p3, %r39, 5; @%p3 bra GO; mov.u32 %r0, 77; st.global.u32 [%rd0], %r0; ret; GO:",
        32,
    );
    for (lane, value) in got.into_iter().enumerate() {
        let want: usize = (0..lane).map(|i| i.max(1)).sum();
        assert_eq!(value as usize, if lane == 5 { 77 } else { want }, "lane {lane}");
    }
}

#[test]
fn indexed_branches_and_scoped_names() {
    let got = run(
        "and.b32 %r1, %r39, 3; T: .branchtargets A, B, C; setp.gt.u32 %p1, %r1, 2; @%p1 bra D; brx.idx %r1, T;
         A: mov.u32 %r0, 1; bra M; B: mov.u32 %r0, 2; bra M; C: mov.u32 %r0, 3; bra M; D: mov.u32 %r0, 4;
         M: { .reg .b32 %r1; mov.u32 %r1, 100; add.u32 %r0, %r0, %r1; } add.u32 %r0, %r0, %r1;",
        32,
    );
    assert_eq!(got[..4], [101, 103, 105, 107]);
}

#[test]
fn shuffles_votes_and_reductions() {
    let sum = run(
        "shfl.sync.bfly.b32 %r1|%p1, %r39, 16, 31, -1; shfl.sync.down.b32 %r2|%p2, %r39, 1, 0x1c1f, -1;
        shfl.sync.up.b32 %r3, %r39, 4, 0, -1; shfl.sync.idx.b32 %r4, %r39, 3, 31, -1;
        mad.lo.u32 %r0, %r1, 100, %r2; mad.lo.u32 %r0, %r0, 100, %r3; mad.lo.u32 %r0, %r0, 100, %r4;",
        32,
    );
    for (lane, value) in (0u32..).zip(sum) {
        let down = if lane % 4 == 3 { lane } else { lane + 1 };
        let up = if lane < 4 { lane } else { lane - 4 };
        assert_eq!(value, (((lane ^ 16) * 100 + down) * 100 + up) * 100 + 3, "lane {lane}");
    }
    let vote = run(
        "setp.lt.u32 %p1, %r39, 3; vote.sync.ballot.b32 %r0, %p1, -1; vote.sync.all.pred %p2, %p1, -1;
        vote.sync.any.pred %p3, %p1, -1; @%p2 add.u32 %r0, %r0, 100; @%p3 add.u32 %r0, %r0, 1000;
        and.b32 %r1, %r39, 1; match.any.sync.b32 %r2, %r1, -1; popc.b32 %r2, %r2; add.u32 %r0, %r0, %r2;
        redux.sync.max.u32 %r3, %r39, -1; add.u32 %r0, %r0, %r3;",
        32,
    );
    assert!(vote.iter().all(|&v| v == 7 + 1000 + 16 + 31), "{vote:?}");
}

#[test]
fn barriers_order_warps_and_reduce() {
    let got = run(
        "mov.u32 %r1, dyn; mad.lo.u32 %r2, %r39, 4, %r1; st.shared.u32 [%r2], %r39; bar.sync 0;
         xor.b32 %r3, %r39, 32; mad.lo.u32 %r4, %r3, 4, %r1; ld.shared.u32 %r0, [%r4];
         setp.lt.u32 %p1, %r39, 40; bar.red.popc.u32 %r5, 0, %p1; mad.lo.u32 %r0, %r5, 100, %r0;
         barrier.sync 1, 64; bar.red.and.pred %p2, 0, %p1; @%p2 trap;",
        64,
    );
    assert_eq!((got[0], got[63]), (4032, 4031));
}

#[test]
fn memory_of_every_space() {
    let source = format!(
        "{HEAD}.const .align 4 .b8 tab[8] = {{1, 0, 0, 0, 2, 0, 0, 0}};\n{}",
        &kernel(
            ".local .align 8 .b8 depot[16]; .shared .align 16 .b8 fixed[64]; mov.u64 %rd1, depot; cvta.local.u64 %rd2, %rd1;
             st.u32 [%rd2+4], 30; ld.local.u32 %r1, [%rd1+4]; ld.const.u32 %r2, [tab+4];
             mov.u64 %rd3, fixed; cvta.shared.u64 %rd4, %rd3; st.v4.u16 [%rd4], {400, 5000, 6, 7}; ld.shared.v2.u16 {%rs1, %rs2}, [fixed];
             cvt.u32.u16 %r3, %rs1; cvt.u32.u16 %r4, %rs2; add.u32 %r0, %r1, %r2; add.u32 %r0, %r0, %r3; add.u32 %r0, %r0, %r4;
             st.shared.b8 [fixed+40], -2; ld.shared.s8 %r5, [fixed+40]; add.u32 %r0, %r0, %r5;"
        )[HEAD.len()..]
    );
    assert_eq!(launch(&source, 1, 1).unwrap().0, [5430]);
}

#[test]
fn atomics() {
    let got = run(
        "mov.u32 %r1, dyn; st.shared.u32 [%r1], 0; bar.sync 0; atom.shared.add.u32 %r2, [%r1], 2; red.shared.max.u32 [%r1+0], 3;
         bar.sync 0; atom.shared.cas.b32 %r3, [%r1], 128, 500; bar.sync 0; ld.shared.u32 %r0, [%r1];",
        1,
    );
    assert_eq!(got, [3]);
    let many = run(
        "mov.u32 %r1, dyn; setp.ne.u32 %p1, %r39, 0; @!%p1 st.shared.u32 [%r1], 0; bar.sync 0;
         red.shared.add.u32 [%r1], %r39; bar.sync 0; ld.shared.u32 %r0, [%r1];",
        64,
    );
    assert!(many.iter().all(|&v| v == 2016));
}

const COPY: &str =
    "mov.u32 %r1, dyn; st.global.u32 [%rd0], %r39; shl.b32 %r2, %r39, 2; add.u32 %r2, %r1, %r2;
    cp.async.ca.shared.global [%r2], [%rd0], 4; cp.async.commit_group;";

#[test]
fn asynchronous_copies_land_at_the_wait() {
    let got = run(
        &format!(
            "{COPY} cp.async.wait_group 0; bar.sync 0; xor.b32 %r2, %r2, 128; ld.shared.u32 %r0, [%r2]; bar.sync 0;"
        ),
        64,
    );
    assert_eq!((got[0], got[40]), (32, 8));
    let zero = run(
        &format!(
            "mov.u32 %r3, 0; {} cp.async.wait_all; ld.shared.u32 %r0, [%r2];",
            COPY.replace(", 4; cp", ", 4, %r3; cp")
        ),
        32,
    );
    assert!(zero.iter().all(|&v| v == 0));
    let early = fault(&format!("{COPY} cp.async.wait_group 1; ld.shared.u32 %r0, [%r2];"), 32);
    assert!(matches!(early, FaultKind::PendingCopy { .. }), "{early}");
    let never = fault(&format!("{COPY} mov.u32 %r0, 0;"), 32);
    assert!(matches!(never, FaultKind::PendingCopyAtExit { count: 32 }), "{never}");
    let no_barrier =
        fault(&format!("{COPY} cp.async.wait_group 0; xor.b32 %r2, %r2, 128; ld.shared.u32 %r0, [%r2];"), 64);
    assert!(
        matches!(
            no_barrier,
            FaultKind::Race { .. } | FaultKind::PendingCopy { .. } | FaultKind::UninitialisedMemory { .. }
        ),
        "{no_barrier}"
    );
}

#[test]
fn stray_accesses() {
    let out = fault("st.global.u32 [%rd0+4], %r39; mov.u32 %r0, 0;", 32);
    assert!(matches!(out, FaultKind::GlobalOutOfBounds { bytes: 4, nearest: Some((_, 128)), .. }), "{out}");
    let null = fault("mov.u64 %rd1, 0; ld.global.u32 %r0, [%rd1];", 1);
    assert!(matches!(null, FaultKind::GlobalOutOfBounds { nearest: None, .. }), "{null}");
    let shared = fault("mov.u32 %r1, dyn; st.shared.u32 [%r1+1024], 0; mov.u32 %r0, 0;", 1);
    assert!(matches!(shared, FaultKind::OutOfBounds { size: 1024, .. }), "{shared}");
    let param = fault("ld.param.u32 %r0, [out+8];", 1);
    assert!(matches!(param, FaultKind::OutOfBounds { size: 8, .. }), "{param}");
    let crooked = fault("st.global.v2.u16 [%rd0+2], {1, 2}; mov.u32 %r0, 0;", 2);
    assert!(matches!(crooked, FaultKind::Misaligned { bytes: 4, .. }), "{crooked}");
    let constant = fault(
        "st.u32 [%rd1], 0; mov.u32 %r0, 0;".replace("st.u32", "mov.u64 %rd1, 0x30000000000; st.u32").as_str(),
        1,
    );
    assert!(matches!(constant, FaultKind::ReadOnly { .. }), "{constant}");
}

#[test]
fn unset_values() {
    let memory = fault("mov.u32 %r1, dyn; ld.shared.u32 %r0, [%r1+8];", 1);
    assert!(matches!(memory, FaultKind::UninitialisedMemory { address: 8, .. }), "{memory}");
    let stored = fault("mov.u32 %r1, dyn; st.shared.u32 [%r1], %r7; ld.shared.u32 %r0, [%r1];", 1);
    assert!(matches!(stored, FaultKind::UninitialisedMemory { address: 0, .. }), "{stored}");
    let address = fault("ld.shared.u32 %r0, [%r7];", 1);
    assert!(matches!(address, FaultKind::UninitialisedRegister { .. }), "{address}");
    let guard = fault("setp.eq.u32 %p1, %r7, 0; @%p1 bra DONE; mov.u32 %r0, 0;", 1);
    assert!(matches!(guard, FaultKind::UninitialisedRegister { .. }), "{guard}");
}

#[test]
fn races() {
    let between_warps = fault(
        "mov.u32 %r1, dyn; mad.lo.u32 %r2, %r39, 4, %r1; st.shared.u32 [%r2], %r39; xor.b32 %r3, %r39, 32;
         mad.lo.u32 %r4, %r3, 4, %r1; setp.lt.u32 %p1, %r39, 32; @%p1 st.shared.u32 [%r4], 5; mov.u32 %r0, 0;",
        64,
    );
    assert!(matches!(between_warps, FaultKind::Race { .. }), "{between_warps}");
    let body = |sync: &str| {
        format!(
        "mov.u32 %r1, dyn; mad.lo.u32 %r2, %r39, 4, %r1; st.shared.u32 [%r2], %r39; {sync} xor.b32 %r3, %r39, 1;
         mad.lo.u32 %r4, %r3, 4, %r1; ld.shared.u32 %r0, [%r4];"
    )
    };
    assert!(matches!(fault(&body(""), 32), FaultKind::Race { .. }));
    assert_eq!(run(&body("bar.warp.sync -1;"), 32)[6], 7);
    let after_read = fault(
        "mov.u32 %r1, dyn; setp.ne.u32 %p1, %r39, 0; @!%p1 st.shared.u32 [%r1], 1; bar.sync 0; ld.shared.u32 %r0, [%r1];
         setp.eq.u32 %p2, %r39, 63; @%p2 st.shared.u32 [%r1], 2;",
        64,
    );
    assert!(matches!(after_read, FaultKind::Race { .. }), "{after_read}");
    let between_blocks = launch(&kernel("mov.u32 %r0, %ctaid.x;"), 2, 32).unwrap_err();
    assert!(matches!(between_blocks.kind, FaultKind::Race { .. }), "{between_blocks}");
    assert_eq!(between_blocks.at.block, [1, 0, 0]);
    assert!(between_blocks.line > 3 && between_blocks.to_string().contains("st.global.u32"));
}

#[test]
fn barriers_and_collectives_that_not_all_reach() {
    let divergent = fault("setp.lt.u32 %p1, %r39, 7; @%p1 bar.sync 0; mov.u32 %r0, 0;", 32);
    assert!(matches!(divergent, FaultKind::DivergentBarrier { active: 0x7F, .. }), "{divergent}");
    let deadlock = fault("setp.lt.u32 %p1, %r39, 32; @%p1 bar.sync 1; @!%p1 bar.sync 2; mov.u32 %r0, 0;", 64);
    assert!(matches!(deadlock, FaultKind::Deadlock { arrived: 32, expected: 64, .. }), "{deadlock}");
    let absent =
        fault("setp.lt.u32 %p1, %r39, 7; mov.u32 %r0, 0; @%p1 shfl.sync.idx.b32 %r0, %r39, 0, 31, -1;", 32);
    assert!(matches!(absent, FaultKind::InactiveLanes { active: 0x7F, .. }), "{absent}");
    let vote = fault("mov.u32 %r0, 0; setp.lt.u32 %p1, %r39, 7; vote.sync.ballot.b32 %r0, %p1, 0xFF;", 32);
    assert!(matches!(vote, FaultKind::InactiveLanes { named: 0xFF, .. }), "{vote}");
    let exited = run(
        "setp.lt.u32 %p1, %r39, 32; mov.u32 %r0, 9; st.global.u32 [%rd0], %r0; @%p1 exit; bar.sync 0;",
        64,
    );
    assert_eq!(exited, [9; 64]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let endless = fault("L: mov.u32 %r0, 0; bra L;", 1);
    assert!(matches!(endless, FaultKind::StepLimit(10_000)), "{endless}");
    let approximate = fault("mov.f32 %f1, 0f3F800000; ex2.approx.f32 %f2, %f1; mov.u32 %r0, 0;", 1);
    assert!(matches!(approximate, FaultKind::Irreproducible { .. }), "{approximate}");
    assert!(matches!(fault("trap; mov.u32 %r0, 0;", 1), FaultKind::Trap));
    for (text, word) in [
        ("frobnicate.u32 %r0, %r1;", "unknown"),
        ("mov.u32 %r0, %clock;", "reproducible"),
        ("mbarrier.init.shared.b64 [%rd0], 1;", "not supported"),
        ("bra NOWHERE;", "NOWHERE"),
        ("ld.global.u32 %r0, [nobody];", "nobody"),
        ("add.f7 %r0, %r1;", "unknown"),
        ("cvt.rn.f32.e4m3x2 %f0, %rs0;", "unknown"),
    ] {
        let error = Module::parse(&kernel(&format!("\n\n{text}"))).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.line(), 10, "{error}");
    }
}

#[test]
fn launches_are_checked() {
    let module = Module::parse(&kernel("mov.u32 %r0, 0;")).unwrap();
    let good = Launch { grid: [1, 1, 1], block: [1, 1, 1], dynamic_shared: 0, args: vec![Arg::Ptr(0)] };
    for (name, bad) in [
        ("nobody", good.clone()),
        ("k", Launch { args: vec![], ..good.clone() }),
        ("k", Launch { args: vec![Arg::U32(1)], ..good.clone() }),
        ("k", Launch { block: [2048, 1, 1], ..good.clone() }),
        ("k", Launch { grid: [0, 1, 1], ..good.clone() }),
        ("k", Launch { dynamic_shared: 1 << 20, ..good }),
    ] {
        let fault = Device::new().launch(&module, name, &bad, &Options::default()).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Launch(_)), "{fault}");
    }
    assert!(Device::new().read(1, 1).is_err());
}

#[test]
fn matrix_instructions_want_whole_warps_and_set_registers() {
    let load = "mov.u32 %r2, dyn; setp.lt.u32 %p1, %r39, 7; mov.u32 %r0, 0; @%p1 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2];";
    assert!(matches!(fault(load, 32), FaultKind::PartialWarp { active: 0x7F }));
    // bf16 ones: every sum of 16 products is 16, the addend 0.5 stays.
    let mma = "mov.u32 %r1, 0x3F803F80; mov.f32 %f1, 0f3F000000;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2,%f3,%f4,%f5}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%f1,%f1,%f1,%f1};
        mov.b32 %r0, %f5;";
    assert_eq!(run(mma, 32), [16.5f32.to_bits(); 32]);
    let unset = fault(&mma.replace("{%r1,%r1}, {%f1", "{%r1,%r9}, {%f1"), 32);
    assert!(matches!(unset, FaultKind::UninitialisedRegister { .. }), "{unset}");
}
