"""Training steps in torch: right ones, and the catalogue's mistakes of optimisers and accumulation."""

import copy
import math
from dataclasses import dataclass, replace

import torch
from models import TINY, hugging_face

import siglip_ref as sr
from siglip_ref.model.optim import cosine

RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
FROZEN = replace(RULE, frozen=lambda name: name.startswith("image/"))


def is_kernel(name, p):
    return (
        p.ndim >= 2 and not any(part in name for part in ("embedding.weight", "probe"))
    ) or "patch_embedding.w" in name


def groups(model, decays=is_kernel):
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": RULE.decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]


def adamw(model, decays=is_kernel, kind=torch.optim.AdamW):
    return kind(groups(model, decays), lr=RULE.lr, betas=(RULE.beta1, RULE.beta2), eps=RULE.eps)


def loss_of(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def embed(model, images, tokens):
    out = model(pixel_values=images, input_ids=tokens)
    return out.image_embeds, out.text_embeds


def pair_loss(model, x, y):
    logits = y @ x.T * model.logit_scale.exp() + model.logit_bias
    return -torch.nn.functional.logsigmoid((2 * torch.eye(len(x)).to(x) - 1) * logits).sum() / len(x)


@dataclass
class Step:
    """A training step with its parts as methods, each of which a mistake replaces."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: object = None
    parts: int = 1

    def __call__(self, images, tokens):
        self.zero()
        self.backward(images, tokens)
        self.clip()
        self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()

    def zero(self):
        self.optimizer.zero_grad()

    def backward(self, images, tokens):
        for i, t in zip(images.chunk(self.parts), tokens.chunk(self.parts), strict=True):
            (loss_of(self.model, i, t) / self.parts).backward()

    def clip(self):
        torch.nn.utils.clip_grad_norm_(self.trained(), RULE.max_norm)

    def trained(self):
        return [p for p in self.model.parameters() if p.requires_grad]

    def scale_grads(self, factor):
        for p in self.trained():
            p.grad.mul_(factor)


def built(kind=Step, dtype="float32", decays=is_kernel, optimizer=torch.optim.AdamW, frozen=(), **rest):
    model = hugging_face(TINY).to(getattr(torch, dtype))
    for p in frozen and getattr(model, frozen).parameters():
        p.requires_grad_(False)
    return kind(model, adamw(model, decays, optimizer), **rest)


def scheduled(step, offset=0):
    step.scheduler = torch.optim.lr_scheduler.LambdaLR(step.optimizer, lambda k: float(SCHEDULE(k + offset)))
    return step


def SCHEDULE(k):  # noqa: N802
    return cosine(k, 10, 2)


# --- the clip


class LocalNorm(Step):
    def clip(self):
        squares = sum((p.grad.flatten()[: (p.numel() + 1) // 2] ** 2).sum() for p in self.trained())
        self.scale_grads(min(1, RULE.max_norm / (math.sqrt(squares) + 1e-6)))


class MeanOfSquares(Step):
    def clip(self):
        squares = sum((p.grad**2).sum() for p in self.trained()) / 2
        self.scale_grads(min(1, RULE.max_norm / (math.sqrt(squares) + 1e-6)))


class PerTensor(Step):
    def clip(self):
        for p in self.trained():
            torch.nn.utils.clip_grad_norm_([p], RULE.max_norm)


class BeforeUnscale(Step):
    def clip(self):
        self.scale_grads(1024)
        super().clip()
        self.scale_grads(1 / 1024)


class NoClip(Step):
    def clip(self):
        pass


class FrozenInNorm(Step):
    """The image tower has gradients, is not stepped, but counts."""

    def clip(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), RULE.max_norm)


# --- the optimiser


class Own(torch.optim.Optimizer):
    """Adam by hand, with a mistake."""

    eps_first = corrected = coupled = False

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                k = state["step"] = state.get("step", 0) + 1
                g = p.grad
                m = state["m"] = one * state.get("m", 0) + (1 - one) * g
                v = state["v"] = two * state.get("v", 0) + (1 - two) * g * g
                c1, c2 = (1 - one**k, 1 - two**k) if self.corrected else (1, 1)
                root = (v.sqrt() + group["eps"]) / math.sqrt(c2) if self.eps_first else (v / c2).sqrt() + group["eps"]
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] / c1 * m / root)


class EpsFirst(Own):
    eps_first = corrected = True


class Corrected(Own):
    corrected = True


class NoZero(Step):
    def zero(self):
        pass


class FrozenUpdated(Step):
    """The image tower was to be frozen, but the flag came too late."""


# --- accumulation


class NotDivided(Step):
    def backward(self, images, tokens):
        for i, t in zip(images.chunk(self.parts), tokens.chunk(self.parts), strict=True):
            loss_of(self.model, i, t).backward()


class Cached(Step):
    """GradCache: embeddings of all micro-batches first, then one graph after the other with the whole loss."""

    divided = True

    def backward(self, images, tokens):
        chunks = list(zip(images.chunk(4), tokens.chunk(4), strict=True))
        with torch.no_grad():
            kept = [embed(self.model, *chunk) for chunk in chunks]
        for k, chunk in enumerate(chunks):
            pairs = [*kept[:k], embed(self.model, *chunk), *kept[k + 1 :]]
            pair_loss(self.model, *(torch.cat(side) for side in zip(*pairs, strict=True))).backward()
        if self.divided:
            for p in (self.model.logit_scale, self.model.logit_bias):
                p.grad /= 4


class CachedNotDivided(Cached):
    divided = False


# --- other right ways


class Autocast(Step):
    def backward(self, images, tokens):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(self.model, images, tokens)
        loss.backward()


class Unscaled(Step):
    """A loss scale, taken off again before the clip."""

    def backward(self, images, tokens):
        (1024 * loss_of(self.model, images, tokens)).backward()
        self.scale_grads(1 / 1024)


# --- save and load


def saved(step, with_state=True):
    """A restart: a new model, optimiser and scheduler, from what was saved."""

    def restart():
        model = copy.deepcopy(step.model)
        optimizer = adamw(model)
        if with_state:
            optimizer.load_state_dict(step.optimizer.state_dict())
        return model, type(step)(model, optimizer)

    return restart


# id: step, and the other arguments of check_step
MISTAKES = {
    "grad-clip-local-norm": lambda d: dict(step_fn=built(LocalNorm, d)),
    "grad-clip-mean-of-squares": lambda d: dict(step_fn=built(MeanOfSquares, d)),
    "grad-clip-per-tensor": lambda d: dict(step_fn=built(PerTensor, d)),
    "clip-before-unscale": lambda d: dict(step_fn=built(BeforeUnscale, d)),
    "clip-missing": lambda d: dict(step_fn=built(NoClip, d)),
    "adam-eps-before-bias-correction": lambda d: dict(step_fn=built(dtype=d, optimizer=EpsFirst)),
    "adam-no-bias-correction": lambda d: dict(step_fn=built(dtype=d, optimizer=Own)),
    "weight-decay-everywhere": lambda d: dict(step_fn=built(dtype=d, decays=lambda name, p: True)),
    "weight-decay-coupled": lambda d: dict(step_fn=built(dtype=d, optimizer=torch.optim.Adam)),
    "schedule-starts-at-one": lambda d: dict(step_fn=scheduled(built(dtype=d), 1), schedule=SCHEDULE),
    "frozen-still-updated": lambda d: dict(step_fn=built(FrozenUpdated, d), rule=FROZEN),
    "frozen-counts-in-norm": lambda d: dict(step_fn=frozen_outside(FrozenInNorm, d), rule=FROZEN),
    "resume-state-lost": lambda d: dict(step_fn=(step := built(dtype=d)), restart=saved(step, False)),
    "grads-not-zeroed-after-clip": lambda d: dict(step_fn=built(NoZero, d)),
    "accum-loss-not-divided": lambda d: dict(step_fn=built(NotDivided, d, parts=4), accumulate=4),
    "accum-cached-not-divided": lambda d: dict(step_fn=built(CachedNotDivided, d)),
    "accum-changes-negatives": lambda d: dict(step_fn=built(dtype=d, parts=4)),
}
RIGHT = {
    "plain": lambda d: dict(step_fn=built(dtype=d)),
    "by hand": lambda d: dict(step_fn=built(dtype=d, optimizer=Corrected)),
    "scheduled": lambda d: dict(step_fn=scheduled(built(dtype=d)), schedule=SCHEDULE),
    "frozen": lambda d: dict(step_fn=built(dtype=d, frozen="vision_model"), rule=FROZEN),
    "accumulated": lambda d: dict(step_fn=built(dtype=d, parts=4), accumulate=4),
    "cached": lambda d: dict(step_fn=built(Cached, d)),
    "unscaled": lambda d: dict(step_fn=built(Unscaled, d)),
    "restarted": lambda d: dict(step_fn=(step := built(dtype=d)), restart=saved(step)),
}


def frozen_outside(kind, dtype):
    """The image tower is left out of the optimiser only."""
    model = hugging_face(TINY).to(getattr(torch, dtype))
    kept = groups(model, lambda name, p: is_kernel(name, p))
    image = {id(p) for p in model.vision_model.parameters()}
    for group in kept:
        group["params"] = [p for p in group["params"] if id(p) not in image]
    step = kind(model, torch.optim.AdamW(kept, lr=RULE.lr, betas=(RULE.beta1, RULE.beta2), eps=RULE.eps))
    step.zero = model.zero_grad
    return step
