"""Several hosts on one machine: network namespaces with host names and addresses of their own, joined by a bridge.

What a rank sends to another host leaves through a virtual network card whose bytes the system counts. MPI is told to
use TCP; `received` is there to see that it did, for shared memory would reach across these hosts as well.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from launch import PYTHON, Run, mpiexec

ENTER = """#!/bin/bash
# called as ssh is: options, host, command
while [[ $1 == -* ]]; do shift; done
host=$1; shift
exec ip netns exec "$host" unshare --uts bash -c "hostname $host; $*"
"""
TCP = {"UCX_TLS": "tcp,self"}  # of the MPICH wheel; others are refused by the count of bytes


def possible():
    """Why hosts cannot be made here; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [name for name in ("ip", "tc", "unshare") if not shutil.which(name)]
    if missing:
        return f"no {', '.join(missing)}: apt-get install iproute2 util-linux"
    probe = subprocess.run(["ip", "netns", "add", "ring-probe"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", "ring-probe"], capture_output=True)
    return probe.stderr.strip()


def _ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


class Hosts:
    """names: of the hosts, the first of which starts the jobs."""

    def __init__(self, folder, names, switch):
        self.folder, self.names, self.switch = Path(folder), names, switch

    def card(self, host):
        """The name of a host's network card."""
        return f"{host}v"

    def run(self, *command, ranks, timeout=120, **environment):
        """`mpiexec -n ranks python command`, one rank on each host in turn."""
        launcher, *flags = mpiexec(ranks)
        across = ["-launcher", "ssh", "-launcher-exec", str(self.folder / "enter"), "-hosts", ",".join(self.names)]
        words = [launcher, *across, "-ppn", "1", *flags, PYTHON, *map(str, command)]
        first = self.names[0]
        setting = [f"{name}={value}" for name, value in (TCP | environment).items()]
        enter = ["ip", "netns", "exec", first, "unshare", "--uts", "bash", "-c", f'hostname {first}; exec "$@"', "-"]
        return Run([*enter, "env", *setting, *words], timeout)

    def received(self, host):
        """Bytes that came to a host since it was made."""
        counted = ["ip", "netns", "exec", host, "cat", f"/sys/class/net/{self.card(host)}/statistics/rx_bytes"]
        # what ip shows is this namespace's own view only after its /sys is mounted, which `ip netns exec` does
        return int(subprocess.run(counted, check=True, capture_output=True, text=True).stdout)

    def limit(self, megabytes_per_second):
        """Every card sends at most so much: a token bucket, large enough for a core that comes a millisecond late."""
        for host in self.names:
            rate = ["rate", f"{8 * megabytes_per_second}mbit", "burst", "128kb", "limit", "16mb"]
            subprocess.run(
                ["tc", "-n", host, "qdisc", "replace", "dev", self.card(host), "root", "tbf", *rate], check=True
            )

    def unplug(self, host):
        """Its cable is pulled: packets vanish in both directions, and nobody is told."""
        _ip("-n", self.switch, "link", "set", f"{host}s", "down")


@contextmanager
def hosts(count, folder):
    """So many hosts, gone at the end."""
    own = f"ring{os.getpid() % 10_000}"
    names, switch = [f"{own}h{k}" for k in range(count)], f"{own}sw"
    place = Path("/etc/netns")
    enter = Path(folder) / "enter"
    enter.write_text(ENTER)
    enter.chmod(0o755)
    table = "127.0.0.1 localhost\n" + "".join(f"10.77.0.{k + 1} {name}\n" for k, name in enumerate(names))
    made = []
    try:
        for name in (switch, *names):
            _ip("netns", "add", name)
            made.append(name)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for k, name in enumerate(names):
            _ip("link", "add", f"{name}v", "netns", name, "type", "veth", "peer", "name", f"{name}s", "netns", switch)
            _ip("-n", switch, "link", "set", f"{name}s", "master", "bridge", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{k + 1}/24", "dev", f"{name}v")
            _ip("-n", name, "link", "set", f"{name}v", "up")
            window = "net.ipv4.tcp_wmem=4096 16384 1048576"  # less than a token bucket holds, else packets are lost
            subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", window], check=True)
            (place / name).mkdir(parents=True)
            (place / name / "hosts").write_text(table)
        yield Hosts(folder, names, switch)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(place / name, ignore_errors=True)
        if place.exists() and not any(place.iterdir()):
            place.rmdir()
