"""`confide doctor`: whether this machine is laid out for a measured and fast service, and what its parts do.

Looks at what the kernel says and changes nothing. What a host says of itself decides nothing anywhere: this is advice.
"""

import ctypes
import mmap
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from confide.attest.reading.detect import Detected, detect
from confide.attest.reading.reader import REPORT_DATA_BYTES
from confide.cli import output
from confide.cli.doctor import Finding, State
from confide.deploy.tuning import REASONS
from confide.errors import ConfideError
from confide.printable import printable

_GUEST: Final = {
    "SGX": "dev/sgx_enclave",
    "TDX": "dev/tdx_guest",
    "SEV-SNP": "dev/sev-guest",
    "Nitro": "dev/nsm",
    "a TPM": "dev/tpmrm0",
    "configfs-tsm": "sys/kernel/config/tsm/report",
}
_HOST: Final = {"TDX": "sys/module/kvm_intel/parameters/tdx", "SEV-SNP": "sys/module/kvm_amd/parameters/sev_snp"}
_UNSYNCHRONIZED: Final = 5
"""TIME_ERROR of ntp_adjtime(3)."""
_TIMEX_BYTES: Final = 256
MEASURED_BYTES: Final = 1 << 27
ROWS, COLUMNS, TOKENS = 4096, 4096, 64
_TIMES: Final = 3
_READINGS: Final = 100_000
_BLOCKS: Final = 64
_MOST_PROCESSORS: Final = 8192
_OWN_CLOCKS: Final = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
"""Read without leaving the guest (Linux, Documentation/virt/kvm/x86/timekeeping)."""


def machine(root: Path = Path("/")) -> Iterator[Finding]:
    """What the kernel says. root: where the file system starts."""
    yield _devices(root)
    yield _huge_pages(root)
    yield _numa(root)
    yield _threads(root)
    yield _gpu(root)
    yield _clock()
    yield _entropy()


def _devices(root: Path) -> Finding:
    guest = [name for name, path in _GUEST.items() if (root / path).exists()]
    host = [name for name, path in _HOST.items() if _said(root / path) in ("Y", "1")]
    if not guest + host:
        absent = "none of SGX, TDX, SEV-SNP, Nitro or a TPM, in this machine or for its guests"
        return Finding("devices", State.ABSENT, absent)
    parts = [f"in this machine: {', '.join(guest)}"] if guest else []
    parts += [f"for its guests: {', '.join(host)}"] if host else []
    lacks = bool({"TDX", "SEV-SNP"} & set(guest)) and "configfs-tsm" not in guest
    todo = "mount configfs at /sys/kernel/config, with Linux 6.7 or later: evidence is had there" if lacks else ""
    return Finding("devices", State.OK, "; ".join(parts), todo)


def _huge_pages(root: Path) -> Finding:
    mode = re.search(r"\[(\w+)\]", _said(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    if mode is None:
        return Finding("huge pages", State.ABSENT, "this kernel has none")
    todo = (
        "" if mode[1] == "always" else f"put transparent_hugepage=always on its command line: {REASONS['huge-pages']}"
    )
    return Finding("huge pages", State.OK, mode[1], todo)


def _numa(root: Path) -> Finding:
    nodes = len(list(root.glob("sys/devices/system/node/node[0-9]*"))) or 1
    packages = root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id")
    sockets = len({_said(package) for package in packages}) or 1
    found = f"{_counted(nodes, 'node')} in {_counted(sockets, 'socket')}"
    if nodes > sockets:
        todo = "switch sub-NUMA clustering off in the firmware: guests do not see where memory is near"
        return Finding("numa", State.OK, found, todo)
    todo = f"keep a guest on one: confide deploy tdx --pin --node; {REASONS['node']}" if nodes > 1 else ""
    return Finding("numa", State.OK, found, todo)


def _threads(root: Path) -> Finding:
    if _said(root / "sys/devices/system/cpu/smt/active") != "1":
        return Finding("threads", State.OK, "one a core")
    return Finding("threads", State.OK, "more than one a core", f"start with nosmt: {REASONS['one-thread-a-core']}")


def _gpu(root: Path) -> Finding:
    count = len(list(root.glob("dev/nvidia[0-9]*")))
    if not count:
        return Finding("gpus", State.ABSENT, "none of NVIDIA's; models run on the processor")
    todo = "what runs there is in no evidence of `confide serve`; the broker can ask for a GPU's own"
    return Finding("gpus", State.OK, f"{count} of NVIDIA's", todo)


def _clock() -> Finding:
    """Whether anything keeps the clock right, by what the kernel was told (ntp_adjtime, which only reads here)."""
    try:
        state = ctypes.CDLL(None).ntp_adjtime(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError):
        state = -1
    if state < 0:
        return Finding("clock", State.OK, "this system does not say whether it is kept right")
    if state == _UNSYNCHRONIZED:
        todo = "start chrony or systemd-timesyncd: certificates and vendors' lists are judged by this clock"
        return Finding("clock", State.OK, "no program says that it keeps it right", todo)
    return Finding("clock", State.OK, "kept right")


def _entropy() -> Finding:
    try:
        os.getrandom(32, os.GRND_NONBLOCK)
    except BlockingIOError:
        todo = "give the machine a virtio-rng, or a processor with RDSEED: every key waits for this"
        return Finding("entropy", State.PROBLEM, "the kernel's generator has no seed yet", todo)
    except AttributeError:
        return Finding("entropy", State.OK, "by this system's own generator")
    return Finding("entropy", State.OK, "the kernel's generator is seeded")


# -- measured ----------------------------------------------------------------------------------------------------------


def measured(folder: Path, root: Path = Path("/"), found: Callable[[], Detected] = detect) -> Iterator[Finding]:
    """What takes a second to find out. folder: on the disk where models are kept. found: what makes evidence here."""
    yield _pages()
    yield _disk(folder)
    yield _readings(root)
    yield _generator()
    yield from _nodes(root)
    yield from _evidence(found())


def products(root: Path = Path("/")) -> Iterator[Finding]:
    """How fast this processor multiplies, in bytes by the hybrid mode's kernel, and in the types of models."""
    import torch

    from confide.rlwe.gemm import shortest_run
    from confide.rlwe.packed import fastest

    operations = 2 * ROWS * COLUMNS * TOKENS
    kernel = fastest("")
    if kernel is not None:
        packed = kernel.pack(torch.ones(ROWS, COLUMNS, dtype=torch.int8))
        digits = torch.ones(TOKENS, COLUMNS, dtype=torch.uint8)
        seconds = shortest_run(partial(kernel.multiply, packed, digits, 0))
        yield Finding(
            "int8", State.OK, f"{operations / seconds / 1e9:.0f} billion operations a second by {kernel.name}"
        )
    speeds = {}
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        weights, tokens = torch.ones(ROWS, COLUMNS, dtype=kind), torch.ones(COLUMNS, TOKENS, dtype=kind)
        speeds[name] = operations / shortest_run(partial(torch.matmul, weights, tokens)) / 1e9
    found = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    has = torch.cpu.get_capabilities().get("amx_tile", False)
    todo = "" if has else f"take a processor with AMX for models in bfloat16 and int8: {REASONS['amx']}"
    yield Finding(
        "products", State.OK, f"{found} billion operations a second, {'with' if has else 'without'} AMX", todo
    )
    yield from _siblings(root)


def _siblings(root: Path) -> Iterator[Finding]:
    """What a second thread of each core adds to products, where there is one: each in a thread that stays there."""
    import torch

    allowed = os.sched_getaffinity(0)
    lists = root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list")
    cores = {tuple(sorted(allowed & set(_processors(_said(one))))) for one in lists} - {()}
    if all(len(core) == 1 for core in cores):
        return
    weights, tokens = torch.ones(ROWS, COLUMNS), torch.ones(COLUMNS, TOKENS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = _together([core[0] for core in cores], partial(torch.matmul, weights, tokens))
        all_of_them = _together([one for core in cores for one in core], partial(torch.matmul, weights, tokens))
    finally:
        torch.set_num_threads(threads)
    speeds = [2e-9 * ROWS * COLUMNS * TOKENS * rate for rate in (alone, all_of_them)]
    found = f"float32 {speeds[0]:.0f} billion operations a second by one a core, {speeds[1]:.0f} by all of them"
    yield Finding("sibling threads", State.OK, found)


def _together(places: Collection[int], work: Callable[[], object]) -> float:
    """How often a second work is done, by a thread on each of these processors, all at once."""

    def stay(place: int) -> None:
        os.sched_setaffinity(0, {place})  # of this thread alone
        for _ in range(_TIMES):
            work()

    started = time.perf_counter()
    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(stay, places))
    return _TIMES * len(places) / (time.perf_counter() - started)


def _readings(root: Path) -> Finding:
    """What a look at the clock costs, which a server takes at every turn: some sources leave the guest for it."""
    source = _said(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    started = time.perf_counter()
    for _ in range(_READINGS):
        time.monotonic()
    took = (time.perf_counter() - started) / _READINGS
    slow = bool(source) and source not in _OWN_CLOCKS
    todo = "start with clocksource=tsc, if the processor's counter is steady: this one leaves the guest"
    found = f"{took * 1e9:.0f} ns each, by {source or 'an unknown source'}"
    return Finding("clock readings", State.OK, found, todo if slow else "")


def _generator() -> Finding:
    """What the kernel's random bytes cost: keys, nonces and errors come from there."""
    started = time.perf_counter()
    for _ in range(_BLOCKS):
        os.urandom(1 << 16)
    speed = (_BLOCKS << 16) / (time.perf_counter() - started)
    return Finding("random bytes", State.OK, f"{output.megabytes(round(speed))} a second")


def _nodes(root: Path) -> Iterator[Finding]:
    """What reading another node's memory costs, where there is another: from the last, of memory of the first."""
    lists = sorted(root.glob("sys/devices/system/node/node[0-9]*/cpulist"), key=lambda path: (len(str(path)), path))
    allowed = os.sched_getaffinity(0)
    places = [sorted(allowed & set(_processors(_said(one)))) for one in lists]
    places = [place for place in places if place]
    if len(places) < 2:
        return

    def read() -> tuple[float, float]:
        os.sched_setaffinity(0, places[0])
        with mmap.mmap(-1, MEASURED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for at in range(0, MEASURED_BYTES, mmap.PAGESIZE):
                memory[at] = 1  # where it is touched first, there it lies
            near = min(_reading(memory) for _ in range(_TIMES))
            os.sched_setaffinity(0, places[-1])
            return near, min(_reading(memory) for _ in range(_TIMES))

    with ThreadPoolExecutor(1) as pool:  # a thread of its own, for its place is changed
        near, far = (output.duration(one * (1 << 30) / MEASURED_BYTES) for one in pool.submit(read).result())
    yield Finding("memory of nodes", State.OK, f"{near} a GiB read from its own node, {far} from another")


def _reading(memory: mmap.mmap) -> float:
    started = time.perf_counter()
    memory.find(b"\xff")  # which is not in it
    return time.perf_counter() - started


def _evidence(detected: Detected) -> Iterator[Finding]:
    """What evidence costs: it is made for every user who asks, and for every renewed certificate."""
    for reader in detected.readers:
        started = time.perf_counter()
        try:
            reader.read(os.urandom(REPORT_DATA_BYTES))
        except ConfideError as error:
            yield Finding("evidence", State.PROBLEM, f"{reader.name}: {printable(str(error))}")
        else:
            took = output.duration(time.perf_counter() - started)
            yield Finding("evidence", State.OK, f"made by {reader.name} in {took}")


def _pages() -> Finding:
    """What it costs to touch memory for the first time, which `prefault` moves to the start."""
    seconds = {}
    for name, advice in (("small", "MADV_NOHUGEPAGE"), ("huge", "MADV_HUGEPAGE")):
        if not hasattr(mmap, advice):
            return Finding("first touch", State.ABSENT, "this system has no huge pages to compare with")
        fastest = min(_first_touch(getattr(mmap, advice)) for _ in range(_TIMES))
        seconds[name] = fastest * (1 << 30) / MEASURED_BYTES
    found = ", ".join(f"{output.duration(value)} a GiB in {name} pages" for name, value in seconds.items())
    return Finding("first touch", State.OK, found)


def _first_touch(advice: int) -> float:
    with mmap.mmap(-1, MEASURED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(advice)
        started = time.perf_counter()
        for at in range(0, MEASURED_BYTES, mmap.PAGESIZE):
            memory[at] = 1
        return time.perf_counter() - started


def _disk(folder: Path) -> Finding:
    """How fast the disk takes what is written, and gives it back without the kernel's copy."""
    import tempfile

    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            started = time.perf_counter()
            for _ in range(MEASURED_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            size, took = file.tell(), time.perf_counter() - started
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            started = time.perf_counter()
            while file.read(len(block)):
                pass
            read = time.perf_counter() - started
    except (OSError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "this system does not allow it"
        return Finding(
            "disk", State.PROBLEM, f"{folder} cannot be measured ({reason})", "make room, or set CONFIDE_HOME"
        )
    found = f"{output.megabytes(round(size / took))} a second written, {output.megabytes(round(size / read))} read"
    return Finding("disk", State.OK, found)


def _processors(text: str) -> Iterator[int]:
    """Of a list as the kernel writes it, such as 0-3,8; none where it is no list."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from range(int(first), min(int(last or first), _MOST_PROCESSORS) + 1)


def _said(path: Path) -> str:
    """A line of the kernel's; empty where it has none."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(256).strip()
    except OSError:
        return ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
