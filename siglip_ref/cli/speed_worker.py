"""One contestant of a benchmark in a process of its own: it sets a case up, then answers "go" with seconds.

Not imported by anything: `python -m siglip_ref.cli.speed_worker CASE CONTESTANT FOLDER THREADS`. Torch and JAX are
loaded only if they are the contestant.
"""

import functools
import json
import math
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.params import init
from siglip_ref.cli.speed_saved import inputs, sized
from siglip_ref.ops.record import Ops

Run = Callable[[], object]


def unit_rows(pairs: int, width: int, seed: int) -> np.ndarray:
    """Random embeddings in float32."""
    x = np.random.default_rng(seed).standard_normal((pairs, width), np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def saved(size: str) -> Path:
    """The checkpoint that every contestant loads."""
    return Path(sys.argv[-2], size.replace("/", "-"))


def numpy_product(case: str, *sizes: str) -> Run:
    """The matrix product itself: 3072 x 3072 in float32, the yardstick of all rates."""
    x = np.ones((3072, 3072), np.float32)
    out = np.empty_like(x)
    return lambda: np.dot(x, x, out=out)


def ours(ops: Ops, case: str, *sizes: str) -> Run:
    from siglip_ref.model.loss import sigmoid_loss
    from siglip_ref.model.optim import AdamW, State
    from siglip_ref.model.two_towers import loss_and_grads
    from siglip_ref.process.blas_threads import one_pool
    from siglip_ref.process.memory import keep_freed_memory
    from siglip_ref.use.inference import image_embeddings, text_embeddings
    from siglip_ref.use.load import load

    keep_freed_memory()
    if case == "loss":
        x, y = (unit_rows(int(sizes[0]), int(sizes[1]), seed) for seed in (1, 2))
        tile = None if ops.compiled else 1024
        return lambda: sigmoid_loss(x, y, math.log(10), -10.0, tile=tile, ops=ops)
    cfg = sized(sizes[0])
    images, tokens = inputs(cfg, int(sizes[1]))
    model = None if case == "step" else load(saved(sizes[0]), ops=ops)
    if model and case in ("image", "text"):
        model = model.prepacked()  # as the other engines do when they load a model
    params, ops = (dict(model.params), model.ops) if model else (init(cfg, dtype=np.float32), ops)
    if case == "image":
        return lambda: image_embeddings(params, images, cfg, ops)
    if case == "text":
        return lambda: text_embeddings(params, tokens, cfg, ops)
    if case == "gradients":
        return lambda: loss_and_grads(params, images, tokens, cfg, ops=ops)
    state, rule, adamw = State(), AdamW(max_norm=1.0), ops.adamw_step
    if ops.compiled:
        from siglip_ref.fast.optim import adamw_in_place as adamw  # as Torch's, and JAX's with donated buffers
        from siglip_ref.fast.optim import together
        from siglip_ref.training.gradient import of_parameters

        params, ops = together(params), of_parameters(ops)  # as `siglip-ref train` does

    def step() -> None:
        nonlocal params, state
        with one_pool(ops.compiled):  # once a step, not once a kernel, as `siglip-ref train` does
            _, grads = loss_and_grads(params, images, tokens, cfg, ops=ops)
            params, state = adamw(params, grads, state, rule)

    return step


def torch_run(compiled: bool, case: str, *sizes: str) -> Run:
    import torch
    import torch.nn.functional as F  # noqa: N812  # as everybody writes it

    torch.set_num_threads(int(sys.argv[-1]))
    wrap: Any = torch.compile if compiled else lambda f: f
    if case == "product":
        a = torch.ones(3072, 3072)
        return lambda: a @ a
    if case == "loss":
        x, y = (torch.tensor(unit_rows(int(sizes[0]), int(sizes[1]), seed), requires_grad=True) for seed in (1, 2))
        log_scale, bias = (torch.tensor(value, requires_grad=True) for value in (math.log(10), -10.0))

        def plain(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
            logits = log_scale.exp() * x @ y.T + bias
            return -F.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).sum() / len(x)

        loss = wrap(plain)
        return lambda: torch.autograd.grad(loss(x, y, log_scale, bias), (x, y, log_scale, bias))
    from transformers import SiglipConfig, SiglipModel

    from siglip_ref.checkpoint.tables.huggingface import write_config

    cfg = sized(sizes[0])
    if case == "step":
        square = replace(cfg, image_size=(max(cfg.image_size), max(cfg.image_size)))
        model = SiglipModel(SiglipConfig(**write_config(square)))
        stem = model.vision_model.embeddings  # knows only square images; with a table of the right length it takes all
        stem.position_embedding = torch.nn.Embedding(cfg.patches, cfg.image.width)
        stem.position_ids = torch.arange(cfg.patches)[None]
    else:
        model = SiglipModel.from_pretrained(saved(sizes[0]))
    images, tokens = inputs(cfg, int(sizes[1]))
    pixels, ids = torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(tokens)
    if case in ("image", "text"):
        part = wrap(model.vision_model if case == "image" else model.text_model)

        def forward() -> Any:
            with torch.no_grad():
                return part(pixels if case == "image" else ids)

        return forward
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    whole = wrap(lambda ids, pixels: model(input_ids=ids, pixel_values=pixels, return_loss=True).loss)

    def step() -> None:
        optimizer.zero_grad()
        whole(ids, pixels).backward()
        if case == "step":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return step


def jax_run(case: str, *sizes: str) -> Run:
    import jax

    from siglip_ref.cli import speed_jax as rival
    from siglip_ref.use.load import load

    def ready(f: Callable[..., Any], *arguments: Any) -> Run:
        return lambda: jax.block_until_ready(f(*arguments))

    if case == "product":
        return ready(jax.jit(lambda a: a @ a), jax.numpy.ones((3072, 3072)))
    if case == "loss":
        x, y = (jax.numpy.asarray(unit_rows(int(sizes[0]), int(sizes[1]), seed)) for seed in (1, 2))
        return ready(jax.jit(jax.value_and_grad(rival.pair_loss, (0, 1, 2, 3))), x, y, math.log(10), -10.0)
    cfg = sized(sizes[0])
    images, tokens = (jax.numpy.asarray(x) for x in inputs(cfg, int(sizes[1])))
    found = init(cfg, dtype=np.float32) if case == "step" else dict(load(saved(sizes[0])).params)
    weights = jax.tree.map(jax.numpy.asarray, found)
    if case == "image":
        return ready(jax.jit(functools.partial(rival.image_forward, cfg=cfg)), weights, images)
    if case == "text":
        return ready(jax.jit(functools.partial(rival.text_forward, cfg=cfg)), weights, tokens)
    if case == "gradients":
        return ready(jax.jit(jax.value_and_grad(functools.partial(rival.model_loss, cfg=cfg))), weights, images, tokens)
    step = jax.jit(functools.partial(rival.adamw_step, cfg=cfg), donate_argnums=(0, 1, 2))
    state = [weights, *(jax.tree.map(jax.numpy.zeros_like, weights) for _ in range(2))]

    def one_step() -> None:
        _, *state[:] = step(*state, 1.0, images, tokens)
        jax.block_until_ready(state)

    return one_step


def engine_run(name: str, case: str, *sizes: str) -> Run:
    """A tower's forward in ONNX Runtime or OpenVINO, exported from the same weights."""
    threads, file = int(sys.argv[-1]), f"{saved(sizes[0])}-{case}-{sizes[1]}.onnx"
    images, tokens = inputs(sized(sizes[0]), int(sizes[1]))
    given = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if case == "image" else tokens
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")  # its default, said
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"given": given})
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer([given])


def set_up(contestant: str, case: str, *sizes: str) -> Run:
    """What to time."""
    if contestant in ("onnxruntime", "openvino"):
        return engine_run(contestant, case, *sizes)
    if contestant == "numpy":
        return numpy_product(case, *sizes)
    if contestant == "jax.jit":
        return jax_run(case, *sizes)
    if contestant.startswith("torch"):
        return torch_run(contestant == "torch.compile", case, *sizes)
    from siglip_ref import fast
    from siglip_ref.model.specification import SPECIFICATION

    if contestant == "fast" and not fast.COMPILED:  # the specification would be measured under its name
        raise ImportError("the kernels cannot be compiled here")
    return ours(fast.OPS if contestant == "fast" else SPECIFICATION, case, *sizes)


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """CASE SIZE ... CONTESTANT FOLDER THREADS: a line of JSON when ready, one for each "go"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that measures; it ends this one
    *case, contestant, _, _ = sys.argv[1:]
    run = set_up(contestant, *case)
    before = _resident()
    run()
    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "added": max(0, peak - before)}), flush=True)
    for line in sys.stdin:
        calls = int(line)
        if case == ["product"]:  # memory that lay idle may have come back in small pages, which slows a product by half
            run = set_up(contestant, *case)
        if calls > 1:  # a short call, after a sleep that cost its caches, on some machines even its pages
            run()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        print(json.dumps((time.perf_counter() - begin) / calls), flush=True)


if __name__ == "__main__":
    main()
