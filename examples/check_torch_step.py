"""A Torch project that checks its own training step. Copy the functions whose names begin with test_ into your tests.

pytest check_torch_step.py                              as a test
siglip-ref check step check_torch_step.py:whole_step    on the command line
"""

import torch
from transformers import SiglipConfig, SiglipModel

import siglip_ref as sr
from siglip_ref.model.optim import cosine

# what the step is meant to do: everything else, the names of parameters too, is ours
RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)


def schedule(step):
    return cosine(step, total=1000, warmup=10)


def small_model():
    """The mistakes of a step do not depend on the model's size: the smaller, the quicker."""
    tower = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    image = tower | {"image_size": 20, "patch_size": 4}
    return SiglipModel(SiglipConfig(vision_config=image, text_config=text | {"projection_size": 12}))


def make_optimizer(model):
    """The project's own: decays matrices, but no embeddings, positions, norms, biases, probe."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    matrices |= {id(m.in_proj_weight) for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in matrices], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if id(p) not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


class Trainer:
    """The project's own training step."""

    def __init__(self, model):
        self.model, self.optimizer = model, make_optimizer(model)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda k: float(schedule(k)))

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        self.model(pixel_values=images, input_ids=tokens, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()

    def save(self):
        parts = (self.model, self.optimizer, self.scheduler)
        return [part.state_dict() for part in parts]

    def load(self, states):
        for part, state in zip((self.model, self.optimizer, self.scheduler), states, strict=True):
            part.load_state_dict(state)


def whole_step():
    """The arguments of check_step."""
    trainer = Trainer(small_model())

    def restart():  # called between the second and the third step
        fresh = Trainer(small_model())
        fresh.load(trainer.save())
        return fresh.model, fresh.step

    return {
        "step_fn": trainer.step,
        "rule": RULE,
        "model": trainer.model,
        "schedule": schedule,
        "restart": restart,
    }


def test_the_training_step():
    sr.check_step(**whole_step()).raise_if_failed()


def update(params, grads, state):
    """The optimiser alone, on tensors by name; in JAX the same with optax."""
    if state is None:
        kernels = [p for name, p in params.items() if name.endswith("/kernel")]
        others = [p for name, p in params.items() if not name.endswith("/kernel")]
        groups = [{"params": kernels, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        state = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for name, p in params.items():
        p.grad = grads[name]
    torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
    state.step()
    return params, state


def test_the_optimiser_alone():
    sr.check_step(update, RULE).raise_if_failed()


if __name__ == "__main__":
    print(sr.check_step(**whole_step()))
