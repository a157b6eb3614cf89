"""The loss, forward and backward, beside Torch and JAX: `python benchmarks/loss_speed.py` writes JSON, table, plot."""

from speed_common import measure

if __name__ == "__main__":
    measure("loss_speed", ["loss-4096", "loss-16384"])
