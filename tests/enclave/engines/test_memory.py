"""How much memory there is, by what the kernel says."""

from pathlib import Path

import pytest

from confide.enclave.engines.memory import available_bytes

GIB = 1 << 30


def machine(root: Path, **groups: tuple[str, int, int]) -> Path:
    """A file system of a machine with 8 GiB free; groups: of path `a/b` each with limit, use and page cache."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:    {8 << 20} kB\n")
    (root / "proc/self/cgroup").write_text("12:cpu:/other\n0::/a/b\n")
    for name, (most, taken, cached) in groups.items():
        folder = root / "sys/fs/cgroup" / {"top": ".", "a": "a", "b": "a/b"}[name]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(str(taken))
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 8 * GIB),
        ({"b": ("max\n", GIB, 0)}, 8 * GIB),
        ({"b": (str(3 * GIB), GIB, 0)}, 2 * GIB),
        ({"b": (str(3 * GIB), 2 * GIB, GIB)}, 2 * GIB),
        ({"b": (str(3 * GIB), 4 * GIB, 0)}, 0),
        ({"a": (str(2 * GIB), GIB, 0), "b": (str(3 * GIB), 0, 0)}, GIB),
        ({"b": (str(30 * GIB), GIB, 0)}, 8 * GIB),
    ],
)
def test_the_least_of_the_machine_and_its_groups(
    groups: dict[str, tuple[str, int, int]], expected: int, tmp_path: Path
) -> None:
    assert available_bytes(machine(tmp_path, **groups)) == expected


def test_here() -> None:
    assert 0 < available_bytes() < 1 << 60
