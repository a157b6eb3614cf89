"""No command writes over what is there: outputs that exist are refused, before any work, unless --force is given."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from PIL import Image

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.cli.main import app, main
from siglip_ref.errors import UsageError
from siglip_ref.process.atomic import sweep, write_atomically
from siglip_ref.process.outputs import require_free

MINE = "my captions\n"
LOSS = """
import numpy as np
import siglip_ref as sr

def right(*given):
    return tuple(map(np.asarray, sr.sigmoid_loss(*given)))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a picture, texts and a loss."""
    folder = tmp_path_factory.mktemp("inputs")
    cfg = replace(sr.config("mu/16"), conventions=sr.preset("huggingface"))
    save_checkpoint(folder / "model", sr.init(cfg, dtype=np.float32), cfg)
    Image.new("RGB", (20, 20), "red").save(folder / "photo.png")
    (folder / "texts.txt").write_text("a cat\na dog\n")
    (folder / "losses.py").write_text(LOSS)
    return folder


# words of a command; what it would write over. {in}: the inputs, {out}: a folder
COMMANDS = {
    "embed, the vectors": (
        ["embed", "--model", "{in}/model", "--text", "{in}/texts.txt", "--out", "{out}/x.npy"], "x.npy"
    ),
    "embed, the names": (
        ["embed", "--model", "{in}/model", "--images", "{in}/photo.png", "--out", "{out}/x.npy"], "x.names.csv"
    ),
    "search --html": (["search", "{in}", "a cat", "--html", "{out}/s.html"], "s.html"),
    "duplicates --html": (["duplicates", "{in}", "--html", "{out}/s.html"], "s.html"),
    "classify --save": (
        ["classify", "--model", "{in}/model", "--image", "{in}", "--labels", "a,b", "--calibrate", "{in}/c.csv",
         "--save", "{out}/c.json"], "c.json"
    ),
    "heatmap": (["heatmap", "{in}/photo.png", "a cat", "--model", "{in}/model", "--out", "{out}/h.png"], "h.png"),
    "index": (["index", "{in}", "--model", "{in}/model", "--out", "{out}"], "mine.txt"),
    "check --json": (["check", "loss", "{in}/losses.py:right", "--json", "{out}/r.json"], "r.json"),
    "check --save-case": (["check", "loss", "{in}/losses.py:right", "--save-case", "{out}/case"], "case/mine.npz"),
    "check dump --json": (["check", "dump", "{in}/none.npz", "--json", "{out}/r.json"], "r.json"),
    "vectors export": (["vectors", "export", "{out}", "--only", "ranks/w2"], "ranks/w2-balanced/vector.json"),
    "vectors regenerate": (["vectors", "regenerate", "{out}"], "golden.json"),
    "vectors measure": (["vectors", "measure", "{out}"], "measured.json"),
    "bench --json": (["bench", "--json", "{out}/b.json"], "b.json"),
    "study, the figures": (["study", "batch", "--out", "{out}"], "batch.json"),
    "study, the picture": (["study", "noise", "--out", "{out}"], "noise.svg"),
}  # fmt: skip


def run(capsys, *words):
    sys.argv = ["siglip-ref", *words]
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("case", COMMANDS)
def test_what_exists_is_refused_and_stays(case, place, tmp_path, capsys):
    words, name = COMMANDS[case]
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(MINE)
    code, err = run(capsys, *(word.format(**{"in": place, "out": tmp_path}) for word in words))
    assert code == 2 and "there already" in err and "--force" in err
    assert mine.read_text() == MINE and [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]


def test_texts_beside_the_vectors_are_not_touched(place, tmp_path, capsys):
    """The names once went into x.txt: a caption file, or the very texts that were embedded."""
    texts = tmp_path / "x.txt"
    texts.write_text("  a cat \n\na dog\n")
    before = texts.read_text()
    code, _ = run(capsys, "embed", "--model", str(place / "model"), "--text", str(texts), "--out", f"{tmp_path}/x.npy")
    assert code == 0 and texts.read_text() == before
    assert (tmp_path / "x.names.csv").read_text() == "row,name\n0,a cat\n1,a dog\n"


def test_force_replaces_the_files_of_these_names_and_no_others(place, tmp_path, capsys):
    for name in ("x.npy", "x.names.csv", "other.txt"):
        (tmp_path / name).write_text(MINE)
    words = ("--text", str(place / "texts.txt"), "--out", str(tmp_path / "x.npy"), "--force")
    assert run(capsys, "embed", "--model", str(place / "model"), *words)[0] == 0
    assert np.load(tmp_path / "x.npy").shape == (2, 32) and (tmp_path / "other.txt").read_text() == MINE


def test_an_interrupted_study_of_other_settings_is_not_lost(tmp_path, capsys):
    from siglip_ref.training.study import run as studies

    begun = studies.Result({**studies.TOY, "seeds": 5}, {"sigmoid: 16": [0.5]})
    (tmp_path / "batch.json").write_text(studies.json.dumps(studies.asdict(begun)))
    code, err = run(capsys, "study", "batch", "--seeds", "2", "--out", str(tmp_path))
    assert code == 2 and "there already" in err and "0.5" in (tmp_path / "batch.json").read_text()


def outputs_of(command):
    """Options and arguments that name what is written."""
    names = [p.name for p in command.params]
    return [name for name in names if name in ("out", "json", "save_case", "svg", "html", "folder", "save")]


def test_every_command_that_writes_has_the_option():
    """A new command is under the rule, too; `zeroshot --json` prints, `vectors verify FOLDER` reads."""
    from mpi.cli import app as ring

    reads = {"zeroshot", "verify"}  # json prints
    found = []
    for group in (typer.main.get_command(app), typer.main.get_command(ring)):
        waiting = list(group.commands.items())
        while waiting:
            name, command = waiting.pop()
            waiting += list(getattr(command, "commands", {}).items())
            if outputs_of(command) and name not in reads:
                found.append(name)
                assert "force" in [p.name for p in command.params], name
    assert {
        "embed",
        "search",
        "duplicates",
        "classify",
        "heatmap",
        "index",
        "loss",
        "model",
        "step",
        "dump",
        "bench",
        "study",
        "export",
        "trace",
        "train",
    } <= set(found)


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for files, folders in (
        ([tmp_path / "no" / "x.json"], []),
        ([tmp_path / "file" / "x.json"], []),
        ([tmp_path], []),
        ([], [tmp_path / "file" / "folder"]),
    ):
        with pytest.raises(UsageError, match="can be written to"):
            require_free(files, folders, force=True)
    require_free([tmp_path / "new", os.devnull and tmp_path.__class__(os.devnull)], [tmp_path / "deep" / "new"])


def test_a_name_in_use_may_be_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "x.json").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="there already"):
        require_free([tmp_path / "x.json"])


def test_a_living_process_keeps_its_part_file(tmp_path):
    """Two write the same file at once: neither sweeps away what the other is writing; of the dead, all is swept."""
    dead = tmp_path / "x.npy.99.part"
    dead.write_bytes(b"half")
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if not child:  # writes, and waits in the middle
        replace_ = os.fsync

        def fsync(descriptor):
            os.write(ours[1], b"!")
            os.read(theirs[0], 1)
            replace_(descriptor)

        os.fsync = fsync
        try:
            write_atomically(tmp_path / "x.npy", b"child")
        finally:
            os._exit(0)
    os.read(ours[0], 1)
    assert not dead.exists()
    write_atomically(tmp_path / "x.npy", b"parent")
    sweep(tmp_path)
    assert (tmp_path / "x.npy").read_bytes() == b"parent"
    os.write(theirs[1], b"!!")  # the file, then its folder
    os.waitpid(child, 0)
    assert (tmp_path / "x.npy").read_bytes() == b"child" and [p.name for p in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("spelled", ["{name}", "../{folder}/{name}", "link.npy"])
@pytest.mark.parametrize("option", ["--text", "--images"])
def test_an_input_is_not_replaced_even_by_force(option, spelled, place, tmp_path, capsys):
    source = tmp_path / "mine.npy"
    source.write_bytes((place / ("texts.txt" if option == "--text" else "photo.png")).read_bytes())
    (tmp_path / "link.npy").symlink_to(source)
    before = source.read_bytes()
    out = tmp_path / spelled.format(name=source.name, folder=tmp_path.name)
    code, err = run(capsys, "embed", "--model", f"{place}/model", option, str(source), "--out", str(out), "--force")
    assert code == 2 and "the input would be lost" in err and source.read_bytes() == before
    assert (tmp_path / "link.npy").is_symlink()


def test_nor_is_what_is_checked(place, tmp_path, capsys):
    mine = tmp_path / "losses.py"
    mine.write_text(LOSS)
    for words in (
        ["loss", f"{mine}:right"],
        ["model", f"{mine}:right"],
        ["step", f"{mine}:right"],
        ["dump", str(mine)],
    ):
        code, err = run(capsys, "check", *words, "--json", str(mine), "--force")
        assert code == 2 and "the input would be lost" in err and mine.read_text() == LOSS


@pytest.mark.parametrize("name", ["y" * 300, "y" * 245], ids=["no name", "no room for .part"])
def test_names_that_no_file_can_have(name, place, tmp_path, capsys):
    """An OSError that nobody caught; or a full disk, said of a name too long, when all work was done."""
    for words in (
        ["embed", "--model", f"{place}/model", "--text", f"{place}/texts.txt", "--out", f"{tmp_path}/{name}.npy"],
        ["check", "loss", f"{place}/losses.py:right", "--json", f"{tmp_path}/{name}.json"],
        ["check", "loss", f"{place}/losses.py:right", "--save-case", f"{tmp_path}/{name}.json"],
        ["train", "--data", "digits", "--steps", "1", "--out", f"{tmp_path}/{name}.json"],
    ):
        code, err = run(capsys, *words)
        assert code == 2 and "choose a shorter name" in err, words
    with pytest.raises(UsageError, match="null"):
        require_free([tmp_path / "a\0b"])


@pytest.mark.parametrize("module", ["siglip_ref", "siglip_ring"])
@pytest.mark.parametrize("words", [["--out", ""], ["--out="]])
def test_a_variable_of_the_shell_that_is_not_set_is_no_folder(module, words, tmp_path):
    """An empty word was the folder where the command ran, and was filled."""
    command = [sys.executable, "-m", module, "train", "--data", "digits", "--steps", "1", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "a variable of the shell that is not set" in " ".join(done.stderr.split()), done
    assert not list(tmp_path.iterdir())
