"""AdamW and clipping against Torch's own, in float64."""

import numpy as np
import torch

from siglip_ref.model.optim import AdamW, State, adamw_step


def test_adamw_agrees_with_torch() -> None:
    rng = np.random.default_rng(1)
    start = {"a/kernel": rng.standard_normal((4, 3)), "b": rng.standard_normal(5)}
    # the second step's gradient is tiny, so that the place of eps shows
    steps = [{name: size * rng.standard_normal(p.shape) for name, p in start.items()} for size in (3.0, 1e-8, 0.1)]
    rule = AdamW(lr=0.01, decay=0.4, max_norm=1.0)

    theirs = {name: torch.tensor(p, requires_grad=True) for name, p in start.items()}
    groups = [
        {"params": [theirs["a/kernel"]], "weight_decay": rule.decay},
        {"params": [theirs["b"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rule.lr, betas=(rule.beta1, rule.beta2), eps=rule.eps)
    ours, state = start, State()
    for grads in steps:
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), rule.max_norm)
        optimizer.step()
        ours, state = adamw_step(ours, grads, state, rule)
        for name, tensor in theirs.items():
            np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-13)
