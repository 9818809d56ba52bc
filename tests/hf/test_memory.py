"""Free memory is what the kernel, and every container around this process, would still give."""

from pathlib import Path

import psutil
import pytest

from minitron_cli.hf.memory import free_host_memory

GB = 1 << 30


def _machine(root: Path, files: dict[str, object]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_the_host_without_containers(tmp_path):
    assert free_host_memory(_machine(tmp_path, {})) == 32 * GB


def test_cgroup_version_2_counts_page_cache_as_free(tmp_path):
    cgroup = "sys/fs/cgroup/"
    files = {"memory.max": 8 * GB, "memory.current": 5 * GB, "memory.stat": f"anon {GB}\nfile {2 * GB}"}
    assert free_host_memory(_machine(tmp_path, {cgroup + name: text for name, text in files.items()})) == 5 * GB


def test_cgroup_version_2_without_a_limit(tmp_path):
    files = {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": 5 * GB}
    assert free_host_memory(_machine(tmp_path, files)) == 32 * GB


def test_the_limit_of_a_cgroup_above_holds_too(tmp_path):
    at = "sys/fs/cgroup/"
    files = {"proc/self/cgroup": "0::/batch/job7/step0", f"{at}batch/job7/step0/memory.max": "max",
             f"{at}batch/job7/step0/memory.current": GB, f"{at}batch/job7/memory.max": 4 * GB,
             f"{at}batch/job7/memory.current": GB}  # fmt: skip
    assert free_host_memory(_machine(tmp_path, files)) == 3 * GB


@pytest.mark.parametrize("own", ["/docker/abc", "/"], ids=["named", "mounted"])
def test_cgroup_version_1(tmp_path, own):
    at = f"sys/fs/cgroup/memory{own}".rstrip("/")
    files = {"proc/self/cgroup": f"9:cpu:/other\n4:memory:{own}", f"{at}/memory.limit_in_bytes": 6 * GB,
             f"{at}/memory.usage_in_bytes": 5 * GB, f"{at}/memory.stat": f"total_cache {GB}"}  # fmt: skip
    assert free_host_memory(_machine(tmp_path, files)) == 2 * GB


def test_the_path_of_a_container_whose_mount_is_its_own_cgroup(tmp_path):
    """In a container /proc may name the host's path, of which the mount shows the end only."""
    files = {"proc/self/cgroup": "4:memory:/docker/abc", "sys/fs/cgroup/memory/memory.limit_in_bytes": 6 * GB,
             "sys/fs/cgroup/memory/memory.usage_in_bytes": GB}  # fmt: skip
    assert free_host_memory(_machine(tmp_path, files)) == 5 * GB


def test_a_container_over_its_limit_has_nothing_left(tmp_path):
    files = {"sys/fs/cgroup/memory.max": GB, "sys/fs/cgroup/memory.current": 2 * GB}
    assert free_host_memory(_machine(tmp_path, files)) == 0


def test_this_machine_gives_no_more_than_psutil_says():
    assert 0 < free_host_memory() <= psutil.virtual_memory().available * 1.2
