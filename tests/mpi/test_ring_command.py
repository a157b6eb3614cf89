"""The command's manners: wrong use ends with exit code 2 and a message; what it offers is what there is."""

import os
import re
import subprocess
import sys
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from launch import ring

import mpi.cli
import mpi.cost
from mpi.batch import Job, shard_sizes
from mpi.comm import ThreadComm
from mpi.cost import Machine, fit, memory, predictions, seconds, traffic
from mpi.job import parse_fault
from mpi.schemes import SCHEMES
from mpi.watchdog.progress import Progress
from siglip_ref.errors import UsageError


def test_the_command_offers_every_scheme():
    assert list(get_args(mpi.cli.Schemes)) == list(SCHEMES)
    assert list(mpi.cost.SCHEMES) == [*SCHEMES, "softmax ring"]


@pytest.mark.parametrize(
    "arguments",
    [["--scheme", "magic"], ["--dtype", "float16"], ["--fault", "9:0:raise"], ["--pairs", "0"], ["--predict"]],
)
def test_wrong_use_is_exit_code_2(arguments):
    run = ring("loss", *arguments, ranks=1, threads=True)
    assert run.code == 2 and not run.left and "Traceback" not in run.err, run


def test_a_users_own_mpi_py_is_named(tmp_path):
    (tmp_path / "mpi.py").write_text("")
    command = [sys.executable, "-c", "import siglip_ring; siglip_ring.main()"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and str(tmp_path / "mpi.py") in run.stderr and "rename that file" in run.stderr


def test_float32_passes_its_check():
    run = ring("loss", "--dtype", "float32", ranks=3, threads=True)
    assert run.code == 0 and "PASS" in run.out, run


def test_pictures_are_xml_and_show_every_block(tmp_path):
    assert ring("loss", "--svg", tmp_path, ranks=3, threads=True).code == 0
    pages = [ElementTree.parse(path).getroot() for path in sorted(tmp_path.glob("*.svg"))]
    words = ["".join(page.itertext()) for page in pages]
    assert ["Hop 0" in words[0], "9 of 9 blocks" in words[2], "The gradients go home" in words[3]] == [True] * 3


def test_an_autograd_ring_sends_gradients_only_on_its_way_back(tmp_path):
    """In the table and in the pictures; a trip's gradients travel from hop 2 on."""
    gradients = {}
    for scheme in ("blocking", "autograd-like"):
        run = ring("loss", "--scheme", scheme, "--svg", tmp_path / scheme, ranks=4, threads=True)
        rows = [line for line in run.out.splitlines() if line.startswith("   0") and "gradient" in line]
        gradients[scheme] = [re.split(r" {2,}", row.strip())[1] for row in rows]
        pages = sorted((tmp_path / scheme).glob("*.svg"))
        assert ["gradient" in page.read_text() for page in pages[:2]] == [False] * 2
    assert gradients == {"blocking": ["2", "3", "home"], "autograd-like": ["back 1", "back 2", "home"]}
    assert "On the way back 1" in pages[4].read_text() and "gradient" not in pages[3].read_text()


def test_halves_are_called_halves():
    run = ring("loss", "--scheme", "bidirectional", ranks=2, threads=True)
    assert "each message carries half a chunk: of two, the first goes left, the second right" in run.out


@pytest.mark.parametrize(("pairs", "world"), [(16, 4), (17, 4), (3, 8), (1, 1), (100, 7)])
def test_shards_cover_the_batch(pairs, world):
    for unequal in (False, True):
        sizes = shard_sizes(pairs, world, unequal)
        assert sum(sizes) == pairs and len(sizes) == world and min(sizes) >= 0
    assert world == 1 or pairs < 20 or len(set(sizes)) > 1


def test_faults_are_read_or_refused():
    assert parse_fault("1:2:kill", 4) == (1, 2, "kill")
    for text in ("", "1", "1:2", "4:0:kill", "0:4:kill", "-1:0:kill", "1:2:dance", "\u00b2:0:kill"):
        with pytest.raises(UsageError, match="for instance --fault"):
            parse_fault(text, 4)


def test_equal_shards_send_what_the_design_says():
    b, dim, world = 5, 7, 6
    for scheme in ("blocking", "overlapped", "autograd-like", "allgather"):
        assert traffic(scheme, [b] * world, 2, dim)[:2] == (2 * (world - 1), 2 * (world - 1) * b * dim)
    assert traffic("softmax ring", [b] * world, 2, dim)[1] == (world - 1) * b * (3 * dim + 2)
    for scheme in mpi.cost.SCHEMES:
        assert traffic(scheme, [b], 0, dim)[:2] == (0, 0)


def test_the_model_knows_what_grows():
    for scheme in mpi.cost.SCHEMES:
        few, many = (memory(scheme, 256 * world, world, 64, 128, 4) for world in (4, 64))
        assert (many > 2 * few) == (scheme in ("allgather", "autograd-like"))
    machine = Machine(alpha=1e-6, beta=1e-9, per_pair=0.0, per_softmax_pair=0.0, per_flop=0.0)
    ring_time = seconds(machine, "blocking", 4096, 4, 64, 4)
    assert ring_time == pytest.approx(6 * 1e-6 + 6 * 1024 * 64 * 4 * 1e-9)
    assert predictions(machine, 64, "float32", 128).count("overlapped") == 12


def test_fit_gives_times():
    for machine in ThreadComm.run(2, lambda comm: fit(comm, "float32", 64), timeout=120):
        assert all(np.isfinite(value) and value >= 0 for value in machine) and machine.per_pair > 0


def test_the_default_batch_is_where_negatives_count():
    assert Job(16, 8, "blocking").bias is None


def test_progress_in_words():
    progress = Progress(1)
    assert progress.where(0) == "before the first hop, while it started"
    progress.listener(0, rank=3)
    assert progress.where(0) == "hop 0, block (images of rank 3, texts of rank 3), while it computed"
    assert progress.stalled(limit=60) is None and progress.stalled(limit=-1) == 0


def test_ranks_do_not_fight_for_the_cores():
    code = "import os, sys, mpi.cli; mpi.cli.app = lambda: print(os.environ['OMP_NUM_THREADS'], 'numpy' in sys.modules)"
    for given, used in ((None, "1"), ("3", "3")):
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        env |= {"OMP_NUM_THREADS": given} if given else {}
        command = [sys.executable, "-c", f"{code}; mpi.cli.main()"]
        assert subprocess.run(command, env=env, capture_output=True, text=True).stdout.split() == [used, "False"]
