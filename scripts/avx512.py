"""Runs a static Linux program on an emulated CPU with AVX-512 (F, BW, VL, DQ, VBMI, VNNI, BF16).

The CPU is Bochs' model of Sapphire Rapids, from the package bochscpu-python; scripts/avx512.sh installs it and calls this.
No kernel is emulated: system calls leave the CPU and go to the host, so files, arguments and the environment are the host's.
Guest memory lies at the same addresses as in this process, hence pointers need no translation.

Threads take turns: one runs until it blocks in a futex, yields or exits. A thread that spins without a system call
starves the others until the time limit. Memory protection and signal handlers are accepted but have no effect.
"""
import bochscpu  # first: the model must be chosen before a Session exists
import bochscpu.cpu
import bochscpu.memory
import collections
import ctypes
import errno
import glob
import os
import struct
import sys
import time

SAPPHIRE_RAPIDS = 30  # its place in the CPU list of bochscpu-python 0.4.0
ARENA, ARENA_SIZE = 0x10_0000_0000, 8 << 30
TABLES, STUB, STACK, IMAGE, HEAP = (ARENA + (mib << 20) for mib in (0, 1, 2, 16, 256))
STACK_SIZE = 8 << 20
PAGE = 4096
VECTORS = {0: 8, 3: 5, 6: 4, 13: 11, 14: 11, 16: 8, 17: 7, 19: 8}  # exception -> signal

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.syscall.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]


def page_up(n):
    return (n + PAGE - 1) & -PAGE


def poke(address, data):
    ctypes.memmove(address, data, len(data))


def choose_model():
    lib = ctypes.CDLL(glob.glob(os.path.join(bochscpu.__path__[0], "_bochscpu*.so"))[0])
    lib.sim_get_param_enum.restype = ctypes.c_void_p
    fields = (ctypes.c_int64 * 18).from_address(lib.sim_get_param_enum(b"cpu.model"))
    if len(set(fields[15:18])) != 1:  # largest, initial and current value, all the default model
        sys.exit("avx512: this version of bochscpu-python keeps its CPU model elsewhere; 0.4.0 is needed")
    fields[15] = fields[16] = fields[17] = SAPPHIRE_RAPIDS


def map_arena():
    anonymous_fixed = 0x2 | 0x20 | 0x4000 | 0x100000  # private, no reserve, not over another mapping
    if libc.mmap(ARENA, ARENA_SIZE, 3, anonymous_fixed, -1, 0) != ARENA:
        sys.exit("avx512: cannot map the program's memory")
    pml4, pdpt = TABLES, TABLES + PAGE
    poke(pml4, struct.pack("<Q", pdpt | 7))
    for gib in range(ARENA_SIZE >> 30):
        directory = TABLES + (2 + gib) * PAGE
        start = ARENA + (gib << 30)
        poke(pdpt + 8 * (start >> 30), struct.pack("<Q", directory | 7))
        poke(directory, b"".join(struct.pack("<Q", start + (i << 21) | 0x87) for i in range(512)))
    poke(STUB, b"\x0f\x09\x48\x0f\x07")  # wbinvd, whose hook is the system call; sysretq
    return pml4


def load(path):
    """Copies the program's segments; returns its entry and the auxiliary vector's facts about it."""
    data = open(path, "rb").read()
    if data[:5] != b"\x7fELF\x02" or struct.unpack_from("<HH", data, 16) != (3, 62):
        sys.exit(f"avx512: {path} is no static-pie program for x86-64 (build with -C target-feature=+crt-static)")
    entry, table = struct.unpack_from("<QQ", data, 24)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, _, offset, address, _, in_file, _, _ = struct.unpack_from("<IIQQQQQQ", data, table + i * size)
        if kind == 3:
            sys.exit(f"avx512: {path} is linked dynamically (build with -C target-feature=+crt-static)")
        if kind == 1:
            poke(IMAGE + address, data[offset : offset + in_file])
    return IMAGE + entry, [(3, IMAGE + table), (4, size), (5, count), (9, IMAGE + entry)]


def build_stack(arguments, environment, auxiliary):
    top = STACK + STACK_SIZE

    def push(data):
        nonlocal top
        top -= len(data)
        poke(top, data)
        return top

    random = push(os.urandom(16))
    strings = lambda items: [push(os.fsencode(item) + b"\0") for item in items]
    argv, envp = strings(arguments), strings(environment)
    # page size, no interpreter, user and group ids, clock ticks, not privileged, random bytes, program name
    auxiliary = auxiliary + [(6, PAGE), (7, 0), *((i, 0) for i in range(11, 15)), (17, 100), (23, 0), (25, random), (31, argv[0])]
    words = [len(argv), *argv, 0, *envp, 0, *(w for pair in auxiliary for w in pair), 0, 0]
    top = (top & -16) - 8 * (len(words) + len(words) % 2)
    poke(top, struct.pack(f"<{len(words)}Q", *words))
    return top


class Thread:
    def __init__(self, tid, state=None):
        self.tid, self.state, self.clear_tid = tid, state, 0
        self.futex = self.deadline = None


class System:
    """The system calls, and the threads between which they switch."""

    # Numbers whose arguments can go to the host as they are.
    HOST = set(
        # read write open close stat fstat lstat poll lseek ioctl pread64 pwrite64 readv writev access
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 18, 19, 20, 21]
        # dup getpid uname fcntl fsync ftruncate getcwd rename mkdir rmdir unlink readlink getuid getgid geteuid getegid
        + [32, 39, 63, 72, 74, 77, 79, 82, 83, 84, 87, 89, 102, 104, 107, 108]
        # getdents64 clock_gettime clock_getres openat mkdirat newfstatat unlinkat readlinkat prlimit64 renameat2
        # getrandom statx
        + [217, 228, 229, 257, 258, 262, 263, 267, 302, 316, 318, 332]
    )
    # Accepted without effect: mprotect rt_sigaction rt_sigprocmask madvise sigaltstack set_robust_list prctl
    IGNORED = {10, 13, 14, 28, 131, 273, 157}

    def __init__(self, verbose):
        self.verbose = verbose
        self.brk = self.brk_base = HEAP
        self.next_map = HEAP + (256 << 20)
        self.free = collections.defaultdict(list)
        self.current = Thread(os.getpid())
        self.next_tid = self.current.tid + 1
        self.ready = collections.deque()
        self.blocked = []

    def call(self, session, _cpu, _what):
        cpu = session.cpu
        number = cpu.rax
        arguments = (cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9)
        result = self.dispatch(cpu, number, arguments)
        if self.verbose:
            print(f"avx512: [{self.current.tid}] {number}{tuple(map(hex, arguments))} = {result}", file=sys.stderr)
        if result is not None:  # None: another thread's registers have been loaded
            cpu.rax = result & (1 << 64) - 1

    def dispatch(self, cpu, number, a):
        if number in self.HOST:
            result = libc.syscall(ctypes.c_long(number), *(ctypes.c_uint64(x) for x in a))
            return result if result != -1 else -ctypes.get_errno()
        if number in self.IGNORED:
            return 0
        handler = getattr(self, f"sys_{number}", None)
        return handler(cpu, *a) if handler else -errno.ENOSYS

    # -- memory

    def sys_9(self, _cpu, address, length, _prot, flags, fd, offset):  # mmap
        length = page_up(length)
        if not flags & 0x10:
            recycled = self.free.get(length)
            if recycled:
                address = recycled.pop()
            else:
                address = self.next_map
                self.next_map += length
                if self.next_map > ARENA + ARENA_SIZE:
                    return -errno.ENOMEM
        self.clear(address, length)
        if not flags & 0x20:
            fd = ctypes.c_int(fd).value
            poke(address, os.pread(fd, length, offset))
        return address

    def sys_11(self, _cpu, address, length, *_):  # munmap
        self.clear(address, page_up(length))
        self.free[page_up(length)].append(address)
        return 0

    def sys_25(self, cpu, old, old_length, length, flags, *_):  # mremap
        if page_up(length) <= page_up(old_length):
            return old
        if not flags & 1:
            return -errno.ENOMEM
        new = self.sys_9(cpu, 0, length, 0, 0x20, 0, 0)
        if new > 0:
            ctypes.memmove(new, old, old_length)
            self.sys_11(cpu, old, old_length)
        return new

    def sys_12(self, _cpu, address, *_):  # brk
        if self.brk_base <= address < self.brk_base + (256 << 20):
            self.brk = address
        return self.brk

    @staticmethod
    def clear(address, length):
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 4)

    # -- threads

    def sys_56(self, cpu, flags, stack, parent_tid, child_tid, tls, *_):  # clone
        if not flags & 0x10000:
            return -errno.ENOSYS
        child = Thread(self.next_tid, cpu.state)
        self.next_tid += 1
        state = child.state
        state.rax, state.rsp = 0, stack
        if flags & 0x80000:
            state.fs = with_base(state.fs, tls)
        if flags & 0x100000:
            poke(parent_tid, struct.pack("<I", child.tid))
        if flags & 0x200000:
            child.clear_tid = child_tid
        self.ready.append(child)
        return child.tid

    def sys_60(self, cpu, status, *_):  # exit
        thread = self.current
        if thread.clear_tid:
            poke(thread.clear_tid, struct.pack("<I", 0))
            self.wake(thread.clear_tid, 1)
        if not self.ready and not self.blocked:
            finish(status & 255)
        self.switch(cpu, keep=False)

    def sys_231(self, _cpu, status, *_):  # exit_group
        finish(status & 255)

    def sys_234(self, _cpu, _group, _tid, signal, *_):  # tgkill, as abort() uses it
        finish(128 + signal)

    def sys_158(self, cpu, code, address, *_):  # arch_prctl
        if code != 0x1002:
            return -errno.EINVAL
        cpu.fs = with_base(cpu.fs, address)
        return 0

    def sys_186(self, *_):  # gettid
        return self.current.tid

    def sys_218(self, _cpu, address, *_):  # set_tid_address
        self.current.clear_tid = address
        return self.current.tid

    def sys_204(self, _cpu, _tid, size, mask, *_):  # sched_getaffinity: the host's for every thread
        return libc.syscall(ctypes.c_long(204), 0, ctypes.c_size_t(size), ctypes.c_void_p(mask))

    def sys_24(self, cpu, *_):  # sched_yield
        return self.reschedule(cpu)

    def sys_35(self, cpu, *_):  # nanosleep: time is not worth waiting for, other threads' work is
        return self.reschedule(cpu)

    sys_230 = sys_35  # clock_nanosleep

    def reschedule(self, cpu):
        if not self.ready:
            return 0
        self.current.state = cpu.state
        self.current.state.rax = 0
        self.ready.append(self.current)
        return self.switch(cpu, keep=True)

    def sys_202(self, cpu, address, operation, value, timeout, *_):  # futex
        command = operation & 127
        if command in (1, 10):
            return self.wake(address, value)
        if command not in (0, 9):
            return -errno.ENOSYS
        if ctypes.c_uint32.from_address(address).value != value & 0xFFFFFFFF:
            return -errno.EAGAIN
        thread = self.current
        thread.futex, thread.deadline = address, None
        if timeout:
            seconds, nanoseconds = struct.unpack("<qq", ctypes.string_at(timeout, 16))
            clock = time.CLOCK_REALTIME if operation & 256 else time.CLOCK_MONOTONIC
            elapsed = time.clock_gettime(clock) if command == 9 else 0
            thread.deadline = time.monotonic() + seconds + nanoseconds / 1e9 - elapsed
        thread.state = cpu.state
        thread.state.rax = 0
        self.blocked.append(thread)
        return self.switch(cpu, keep=True)

    def wake(self, address, count):
        woken = [t for t in self.blocked if t.futex == address][:count]
        for thread in woken:
            self.blocked.remove(thread)
            self.ready.append(thread)
        return len(woken)

    def switch(self, cpu, keep):
        """Loads the next thread's registers; every thread waits at the same instruction of the stub."""
        if not self.ready:
            waiting = [t for t in self.blocked if t.deadline is not None]
            if not waiting:
                sys.stderr.write("avx512: every thread waits for another\n")
                finish(125)
            thread = min(waiting, key=lambda t: t.deadline)
            time.sleep(max(0, thread.deadline - time.monotonic()))
            thread.state.rax = -errno.ETIMEDOUT & (1 << 64) - 1
            self.blocked.remove(thread)
            self.ready.append(thread)
        self.current = self.ready.popleft()
        cpu.set_state_no_flush(self.current.state)
        return None


def finish(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the emulator's own clean-up is neither needed nor quiet


def segment(selector, attributes, base=0):
    s = bochscpu.Segment()
    s.present, s.selector, s.base, s.limit, s.attr = True, selector, base, 0xFFFFFFFF, attributes
    return s


def with_base(old, base):
    return segment(old.selector, old.attr, base)


def initial_state(pml4, entry, stack):
    state = bochscpu.State()
    bochscpu.cpu.set_long_mode(state)
    state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, pml4, 0x50620, 0xD01
    state.xcr0 = 0xE7  # x87, SSE, AVX, opmask, upper halves, upper registers
    state.star, state.lstar, state.sfmask = 0x23 << 48 | 0x10 << 32, STUB, 0x200
    state.cs = segment(0x33, 0xA0FB)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(state, name, segment(0x2B, 0xC0F3))
    state.rip, state.rsp, state.rflags = entry, stack, 2
    state.mxcsr, state.fpcw, state.fptw = 0x1F80, 0x37F, 0xFFFF
    return state


def main():
    arguments = sys.argv[1:]
    verbose = arguments[:1] == ["--trace"]
    arguments = arguments[verbose:]
    if not arguments:
        sys.exit("usage: avx512.py [--trace] PROGRAM [ARGUMENT...]")
    choose_model()
    pml4 = map_arena()
    entry, auxiliary = load(arguments[0])
    environment = [f"{k}={v}" for k, v in os.environ.items() if k != "LD_PRELOAD"]
    stack = build_stack(arguments, environment, auxiliary)

    session = bochscpu.Session()
    guarded = lambda act: lambda *a: crash_free(act, *a)

    def missing_page(address):
        page = address & -PAGE
        if not ARENA <= page < ARENA + ARENA_SIZE:
            sys.stderr.write(f"avx512: no memory at {address:#x}\n")
            finish(139)
        bochscpu.memory.page_insert(page, page)

    def exception(session, _cpu, vector, _error):
        cpu = session.cpu
        sys.stderr.write(f"avx512: exception {vector} near {cpu.rip - IMAGE:#x} of the program, address {cpu.cr2:#x}\n")
        finish(128 + VECTORS.get(vector, 11))

    session.missing_page_handler = guarded(missing_page)
    hook = bochscpu.Hook()
    hook.cache_cntrl = guarded(System(verbose).call)
    hook.exception = guarded(exception)
    session.cpu.state = initial_state(pml4, entry, stack)
    session.run([hook])
    finish(125)


def crash_free(act, *a):
    """An exception cannot pass through the emulator: report it and leave."""
    try:
        return act(*a)
    except BaseException as e:
        sys.stderr.write(f"avx512: {type(e).__name__}: {e}\n")
        finish(125)


main()
