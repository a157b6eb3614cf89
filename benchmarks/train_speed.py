"""A training step of mu/16 at batch 256 beside Hugging Face's model in eager Torch: `python benchmarks/train_speed.py`.

Forward, backward, clip and AdamW, on the same machine with the same threads, turn by turn.
"""

from speed_common import RESULTS

from siglip_ref.cli.speed import bench, machine, table

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    results = bench(["step-mu-256"], ["fast", "torch"], threads=2, repeats=11, save=RESULTS / "train_speed.json")
    facts = ", ".join(f"{key} {value}" for key, value in machine(2).items())
    (RESULTS / "train_speed.md").write_text(f"{table(results)}\n\n{facts}\n", encoding="utf-8")
    print(table(results))
