"""Free host memory is the least of what the system and the container leave."""

from blockswap.store import host_memory
from blockswap.store.host_memory import free_host_bytes, peak_host_bytes, total_host_bytes


def write(tmp_path, monkeypatch, *, available_kb, limit, usage):
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {available_kb} kB\n")
    (tmp_path / "limit").write_text(f"{limit}\n")
    (tmp_path / "usage").write_text(f"{usage}\n")
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    group = ((tmp_path / "limit", tmp_path / "usage"),)
    monkeypatch.setattr(host_memory, "_CGROUPS", group)


def test_a_container_limit_counts(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, available_kb=1000, limit=500_000, usage=200_000)
    assert free_host_bytes() == 300_000


def test_without_a_limit_the_system_has_the_word(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, available_kb=1000, limit="max", usage=200_000)
    assert free_host_bytes() == 1_024_000


def test_unknown_stays_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(host_memory, "_CGROUPS", ())
    assert free_host_bytes() is None


def test_the_peak_of_this_process_is_known_here():
    ballast = b"x" * (60 * 2**20)
    assert peak_host_bytes() > len(ballast)


def test_all_memory_is_the_systems_or_the_containers_limit(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, available_kb=1000, limit="max", usage=0)
    everything = total_host_bytes()
    assert everything >= free_host_bytes()
    write(tmp_path, monkeypatch, available_kb=1000, limit=everything - 1, usage=0)
    assert total_host_bytes() == everything - 1
    monkeypatch.delattr(host_memory.os, "sysconf")
    assert total_host_bytes() == everything - 1
    monkeypatch.setattr(host_memory, "_CGROUPS", ())
    assert total_host_bytes() is None
