"""B/16-256 and the toy models' steps beside Torch, JAX, ONNX Runtime, OpenVINO: `python benchmarks/model_speed.py`."""

from speed_common import measure

if __name__ == "__main__":
    forward = ["image-1", "image-8", "image-32", "text-1", "text-8"]
    measure("model_speed", [*forward, "gradients-8", "step-tiny", "step-mu", "step-mu-256", "step-s", "step-b"])
