"""Every block of code in README and docs runs: Python blocks of a page one after another, shell blocks line by line.

They run in a folder that holds what they speak of: DIR (a small model), photos/, captions.txt, your_project.py ...
A training is cut to two steps.
Cells (`{code-cell}`) run when the site is built. Blocks without a language are output or pictures.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([^\s`]*)[^\n]*\n(?::[a-z-]+:[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)
BUILT = {"python", "bash", "", "text", "diff", "toml", "json", "mermaid", "py", "sh"}

# What CI's own script runs, or what needs a network, a cluster or an hour. Everything else runs here.
ELSEWHERE = re.compile(r"^(pip |git clone |python3 -m venv|hf download|srun |sbatch |export |pytest|cd |#|\.ci/)")
TRAINING = re.compile(r"(siglip-r(?:ef|ing) train [^#]*)")

FILES = {
    "your_project.py": """
import torch.nn.functional as F
import torch

def siglip_loss(image_embed, text_embed, log_scale, bias):
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    return -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)
""",
    "my_file.py": """
from siglip_ref.check.model.adapters.find import load_target

def make_model():
    return load_target("hf:tiny")
""",
    "captions.txt": "a cat\na dog\n",
}


PAGES_WITH_CODE = [
    pytest.param(page, id=str(page.relative_to(ROOT)))
    for page in PAGES
    if any(language in ("python", "bash") for language, _ in BLOCK.findall(page.read_text(encoding="utf-8")))
]
# Tests are called as pytest would call them: those with a mark, once for each of its values.
CALL_TESTS = """
for name, test in list(globals().items()):
    if name.startswith("test_"):
        for mark in getattr(test, "pytestmark", ()):
            for one in mark.args[1]:
                test(*one.values)
        hasattr(test, "pytestmark") or test()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the pages speak of."""
    place = tmp_path_factory.mktemp("pages")
    cfg = replace(sr.config("mu/16"), conventions=sr.preset("huggingface"))
    save_checkpoint(place / "DIR", sr.init(cfg, seed=0, dtype=np.float32), cfg)
    (place / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(place / "photos" / f"{number}.png")
        (place / "photos" / f"{number}.txt").write_text(f"picture number {number}")
    for name, text in FILES.items():
        (place / name).write_text(text)
    shutil.copy(place / "your_project.py", place / "your_file.py")
    shutil.copytree(ROOT / "examples", place / "examples")
    return place


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_the_blocks_of_a_page(page, place):
    program, waiting = "", False
    for language, text in [*BLOCK.findall(page.read_text(encoding="utf-8")), ("bash", "")]:
        if language in ("python", "{code-cell}"):
            program, waiting = program + text + "\n", waiting or language == "python"
        elif language == "bash":
            if waiting:
                run([sys.executable, "-c", program + CALL_TESTS], place)
                waiting = False
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip() and not ELSEWHERE.match(line):
                    run(["bash", "-c", TRAINING.sub(r"\1 --steps 2 ", line)], place)


def run(words, place):
    """Run a command where the pages' files are; it must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{words[-1]}\n{ran.stdout}\n{ran.stderr}"


def test_no_block_is_of_a_language_that_nobody_runs():
    known = BUILT | {
        "{code-cell}",
        "{toctree}",
        "{mistakes}",
        "{count}",
        "{pitfalls}",
        "{symptoms}",
        "{literalinclude}",
        "{include}",
        "{figure}",
    }
    known |= {"{eval-rst}", "{image}", "{raw}", "{admonition}", "{note}", "{dropdown}"}
    unknown = {
        (page.name, language)
        for page in PAGES
        for language, _ in BLOCK.findall(page.read_text())
        if language not in known
    }
    assert not unknown


def test_the_readme_says_what_a_fresh_loss_is():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 4
    for pairs, right, zero in rows:
        for printed, bias in ((right, -10.0), (zero, 0.0)):
            digits = len(printed.split(".")[1])
            assert f"{sr.expected_loss(int(pairs.replace(',', '')), np.log(10), bias):.{digits}f}" == printed
