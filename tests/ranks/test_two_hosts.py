"""Two hosts: two network and process namespaces, one group over TCP between them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from fleet import environment, said, values

# Of this run: another one, or one that was killed, has names of its own.
NAMES = tuple(f"blockswap-{host}-{os.getpid()}" for host in "ab")
ENDS = tuple(f"bswap{os.getpid()}{host}" for host in "ab")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def hosts() -> Iterator[None]:
    """Both network namespaces, joined by a cable, and gone afterwards."""
    with ExitStack() as undo:
        for name in NAMES:
            _run("ip", "netns", "add", name)
            undo.callback(_run, "ip", "netns", "del", name)
        _run("ip", "link", "add", ENDS[0], "type", "veth", "peer", "name", ENDS[1])
        for name, end, address in zip(NAMES, ENDS, ADDRESSES, strict=True):
            _run("ip", "link", "set", end, "netns", name)
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            _run("ip", "-n", name, "link", "set", end, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield


def _host(number: int, store: str) -> "subprocess.Popen[str]":
    """Two ranks in namespaces of their own; what they say is one after the other."""
    ranks = [
        f"{sys.executable} -m scenarios "
        f"'{json.dumps([2 * number + rank, 4, store, 'two_hosts', {}])}'"
        for rank in range(2)
    ]
    both = f"{ranks[0]} & first=$!; {ranks[1]} | tail -1; second=$?; wait $first && exit $second"
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", both]
    return subprocess.Popen(
        ["ip", "netns", "exec", NAMES[number], *inside],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "GLOO_SOCKET_IFNAME": ENDS[number]},
    )


def test_weights_rest_once_on_each_of_two_hosts() -> None:
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("two hosts are namespaces here, which need root, ip and unshare")
    with hosts():
        processes = [_host(number, f"tcp://{ADDRESSES[0]}:29517") for number in range(2)]
        try:
            found = values([said(process) for process in processes])
        finally:
            for process in processes:
                process.kill()
    for number, one in enumerate(found):
        assert one["equal"] == [True, True]
        assert len(one["said"]) == len(one["segments"]) == 1
        assert one["host"] == [2 * number, 2 * number + 1]
    assert found[0]["segments"] != found[1]["segments"]
