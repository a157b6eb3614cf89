"""A Slurm cluster of this one machine, started by hand; its two processors are declared as four."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONF = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def possible():
    """Why there can be no Slurm here; empty if there can."""
    if os.geteuid() != 0:
        return "the daemons are started as root"
    missing = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    return f"no {', '.join(missing)}: apt-get install slurm-wlm munge" if missing else ""


PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def slurm(folder):
    """The environment in which sbatch and srun find the cluster; its daemons are gone at the end."""
    folder = Path(folder)
    folder.chmod(0o755)  # munge refuses a socket that nobody could reach
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname(), port=free_port(), other_port=free_port(), folder=folder))
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": PATH}
    files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={folder}/key",
        f"--socket={folder}/munge.socket",
        *files,
    ]
    daemons = []
    ends_with_us = ["setpriv", "--pdeathsig", "TERM"]  # also where the tests themselves are killed
    try:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            command = [*ends_with_us, *command]
            daemons.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        end = time.monotonic() + 30
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True).stdout:
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)
        yield env
    finally:
        end_jobs(env)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def end_jobs(env, patience=60):
    """End what runs or waits, and wait until its processes are gone: without the daemons nobody would end them."""
    end = time.monotonic() + patience
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--user=root"], env=env, capture_output=True, timeout=patience)
        while jobs(env).stdout and time.monotonic() < end:
            time.sleep(0.2)


def jobs(env):
    """What squeue says."""
    return subprocess.run(["squeue", "--noheader"], env=env, capture_output=True, text=True, timeout=60)
