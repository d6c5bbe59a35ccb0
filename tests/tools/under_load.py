"""Run the chapters under strict nbval again and again while the machine is busy.

    python -m tests.tools.under_load --runs 5
    python -m tests.tools.under_load --runs 5 --no-network

Another program keeps every core busy meanwhile. `--no-network` runs in a network of
its own that holds nothing but the machine itself (Linux, as root).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.tools.isolation import ROOT, chapters

SPIN = "while True: pass"
INSIDE = "COURSE_WITHOUT_NETWORK"


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep each core busy with one process of its own."""
    spinners = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def strict_run(notebooks: list[str]) -> tuple[bool, str]:
    """One strict run: whether it passed, and its closing lines."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.tools.strict_nbval"]
    command += ["-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "loadscope", *notebooks]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.returncode == 0, run.stdout + run.stderr


def again_without_network() -> int:
    """Start this command once more where there is no network but the loopback."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"):
        print("--no-network needs Linux, root and the unshare command.", file=sys.stderr)
        return 2
    command = ["unshare", "--net", sys.executable, "-m", "tests.tools.under_load", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, INSIDE: "1"}).returncode


def raise_loopback() -> None:
    """Switch on the loopback interface of a new network (what `ip link set lo up` does)."""
    import fcntl
    import socket
    import struct

    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get_flags, request))[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.under_load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("notebooks", nargs="*", default=[str(path) for path in chapters()])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-network", action="store_true")
    chosen = parser.parse_args()
    if chosen.no_network and INSIDE not in os.environ:
        return again_without_network()
    if chosen.no_network:
        raise_loopback()
    passed = 0
    with busy_cores():
        for number in range(1, chosen.runs + 1):
            started = time.monotonic()
            ok, text = strict_run(chosen.notebooks)
            passed += ok
            seconds = time.monotonic() - started
            print(f"run {number}: {'passed' if ok else 'FAILED'} in {seconds:.0f} s", flush=True)
            if not ok:
                print(text)
    network = "without network" if chosen.no_network else "with network"
    print(f"{passed} passed, {chosen.runs - passed} failed, cores busy, {network}.")
    return passed != chosen.runs


if __name__ == "__main__":
    sys.exit(main())
