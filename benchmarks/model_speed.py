"""B/16-256 and the toy models' steps beside Hugging Face in Torch, and JAX: `python benchmarks/model_speed.py`."""

from speed_common import measure

if __name__ == "__main__":
    measure("model_speed", ["image-1", "image-8", "text-8", "gradients-8", "step-tiny", "step-mu", "step-mu-256"])
