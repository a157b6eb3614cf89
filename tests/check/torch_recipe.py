"""SigLIP 2's recipe in plain Torch, as one would write it; `Program(made="...")` makes one mistake of the catalogue.

Answers are those that `siglip_ref.check.files.recipe` asks for: a loss, or a dict of tensors by name.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

Tensors = dict[str, Any]
HEADS, PATCH, GRID = 2, 4, (3, 7)


def below(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def norm(x: Any, w: Tensors, name: str) -> Any:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}/gamma"], w.get(f"{name}/beta"), 1e-6)


def linear(x: Any, w: Tensors, name: str) -> Any:
    return x @ w[f"{name}/kernel"] + w.get(f"{name}/bias", 0)


def attention(x: Any, z: Any, w: Tensors, name: str, seen: Any = None) -> Any:
    query, key, value = (
        linear(y, w, f"{name}/{p}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for y, p in ((x, "q"), (z, "k"), (z, "v"))
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
    return linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), w, f"{name}/out")


def mlp(x: Any, w: Tensors, name: str) -> Any:
    return linear(functional.gelu(linear(x, w, f"{name}/in"), approximate="tanh"), w, f"{name}/out")


def pool(tokens: Any, w: Tensors) -> Any:
    """One probe asks all tokens."""
    own = below(w, "image/pool/")
    x = attention(own["probe"].expand(len(tokens), 1, -1), tokens, own, "attn")
    return (x + mlp(norm(x, own, "norm"), own, "mlp"))[:, 0]


def losses_of_pairs(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -functional.logsigmoid(signs * (log_scale.exp() * x @ y.T + bias))


def of_counted(values: Any, counted: Any, mean: str = "example", made: str = "") -> Any:
    """A mean over what counts in each example, then over the examples."""
    if mean == "token":
        return (values * counted).sum() / counted.sum()
    number = counted.sum(1)
    if made == "average-over-all-places":
        number = torch.full_like(number, counted.shape[1])
    if made == "average-not-divided":
        number = torch.ones_like(number)
    sums = values.masked_fill(~counted, 0).sum(1)
    return (sums / (number if made == "average-of-nothing" else number.clamp(min=1))).mean()


@dataclass(frozen=True)
class Program:
    """One mistake, or none."""

    made: str = ""

    # ---- captions

    def captions(self, inputs: Tensors, settings: Any) -> Any:
        """The caption loss of one task, from labels, weights and the image's tokens."""
        context, recipe = inputs["context"], settings["conventions"]
        w = below(inputs, "w/")
        return self.caption_loss(
            w, inputs, context.detach() if self.made == "caption-tokens-detached" else context, recipe
        )

    def caption_loss(self, w: Tensors, task: Tensors, context: Any, recipe: Any) -> Any:
        labels, counted, parallel, made = task["labels"], task["counted"], task["parallel"], self.made
        length, mask_id = labels.shape[1], 0 if made == "caption-mask-id-start" else len(w["token"]) - 1
        if made == "caption-mode-of-batch":
            parallel = parallel[:1].expand(len(labels))
        shift = {"caption-no-shift": 0, "caption-shift-two": 2}.get(made, 1)
        before = functional.pad(labels[:, : length - shift], (shift, 0))
        ids = torch.where(parallel[:, None], mask_id, before)
        x = w["token"][ids] + (w["position"].detach() if made == "decoder-position-forgotten" else w["position"])
        if made == "decoder-embedding-overwritten":  # one place of each word has a gradient: the last
            last = torch.zeros(ids.shape, dtype=torch.bool)
            found = {int(word): place for place, word in enumerate(ids.flatten())}
            last.view(-1)[list(found.values())] = True
            rows = w["token"][ids]
            x = torch.where(last[..., None], rows, rows.detach()) + w["position"]
        ones = torch.ones(length, length, dtype=torch.bool)
        seen = {"caption-no-causal-mask": ones, "caption-causal-one-ahead": ones.tril(1)}.get(made, ones.tril())
        together = torch.zeros_like(parallel) if made == "caption-parallel-causal" else parallel
        seen = seen | together[:, None, None]
        if made == "caption-pad-keys-hidden":
            seen = seen & ((labels != 0) | (torch.arange(length) == 0))[:, None]
        if made == "decoder-norms-context":
            context = (context - context.mean(-1, keepdim=True)) / context.std(-1, correction=0, keepdim=True)
        for block in ("block00/", "block01/"):
            own = below(w, block)
            normed = norm(x, own, "norm1")
            x = x + attention(normed, normed, own, "self", seen)
            x = x + attention(norm(x, own, "norm2"), context, own, "cross")
            x = x + mlp(norm(x, own, "norm3"), own, "mlp")
        losses = self.token_losses(norm(x, w, "norm"), w["out/kernel"], w["out/bias"], labels, recipe["smoothing"])
        if made == "caption-pad-counted":
            counted = counted | (labels == 0)
        if made == "caption-end-not-predicted":
            counted = counted & functional.pad(counted[:, 1:], (0, 1))
        return of_counted(losses, counted, "token" if made == "caption-mean-of-tokens" else recipe["mean"], made)

    def token_losses(self, states: Any, kernel: Any, bias: Any, labels: Any, smoothing: float) -> Any:
        logits = states @ kernel + bias
        words = logits.shape[-1]
        share = smoothing / (words if self.made == "token-loss-smoothing-share" else words - 1)
        target = functional.one_hot(labels, words).to(logits.dtype) * (1 - smoothing - share) + share
        total = logits.logsumexp(-1)
        if self.made == "token-loss-softmax-of-chunk":  # of four words each
            chunk = labels[..., None] // 4 == torch.arange(words) // 4
            total = logits.masked_fill(~chunk, -torch.inf).logsumexp(-1)
        return total - (target * logits).sum(-1)

    def token_loss(self, inputs: Tensors, settings: Any) -> Tensors:
        given = [inputs[name].requires_grad_() for name in ("states", "kernel", "bias")]
        out = self.token_losses(*given, inputs["labels"], settings["smoothing"])
        return dict(
            zip(("out", "d_states", "d_kernel", "d_bias"), self.with_gradients(out, inputs, given), strict=True)
        )

    def bottleneck(self, inputs: Tensors, settings: Any) -> Tensors:
        table, widen = (inputs[name].requires_grad_() for name in ("table", "widen"))
        out, d_table, d_widen = self.with_gradients(table[inputs["tokens"]] @ widen, inputs, [table, widen])
        if self.made == "bottleneck-scatter-after-widening":
            rows = inputs["d_out"][..., : table.shape[1]].flatten(0, 1)
            d_table = torch.zeros_like(table).index_add(0, inputs["tokens"].flatten(), rows)
        return {"out": out, "d_table": d_table, "d_widen": d_widen}

    def head_alone(self, inputs: Tensors, settings: Any) -> Tensors:
        w = {name: value.requires_grad_() for name, value in below(inputs, "w/").items()}
        out, *grads = self.with_gradients(
            self.head(inputs["x"].requires_grad_(), w), inputs, [inputs["x"], *w.values()]
        )
        return {"out": out} | dict(zip(["d_x", *(f"d_w/{name}" for name in w)], grads, strict=True))

    def with_gradients(self, out: Any, inputs: Tensors, given: list[Any]) -> list[Any]:
        return [out, *torch.autograd.grad((out * inputs["d_out"]).sum(), given)]

    # ---- views and heads

    def view(self, images: Any, w: Tensors, masked: Any = None) -> Any:
        """Images of any size to tokens behind the last norm; hidden patches are the mask token."""
        own, made = below(w, "image/"), self.made
        batch, rows, columns = len(images), images.shape[1] // PATCH, images.shape[2] // PATCH
        cut = images.reshape(batch, rows, PATCH, columns, PATCH, 3).transpose(2, 3).reshape(batch, rows * columns, -1)
        x = linear(cut, own, "patch")
        table = own["position"]
        if (rows, columns) != GRID and made == "view-position-not-resized":
            table = table[: rows * columns]
        elif (rows, columns) != GRID:
            grid = table.reshape(1, *GRID, -1).permute(0, 3, 1, 2)
            table = functional.interpolate(grid, (rows, columns), mode="bilinear", antialias=True)[0].flatten(1).T
        hidden = None if masked is None else (~masked if made == "mask-inverted" else masked)[..., None]
        if hidden is not None:
            token = w["mask/token"].detach() if made == "mask-token-constant" else w["mask/token"]
            if made == "mask-after-position":
                return self.encode(torch.where(hidden, token, x + table), own)
            x = torch.where(hidden, token + own["patch/bias"] * (made == "mask-before-bias"), x)
        return self.encode(x + table, own)

    def encode(self, x: Any, own: Tensors) -> Any:
        for block in ("block00/", "block01/"):
            w = below(own, block)
            normed = norm(x, w, "norm1")
            x = x + attention(normed, normed, w, "attn")
            x = x + mlp(norm(x, w, "norm2"), w, "mlp")
        return x if self.made == "caption-before-final-norm" else norm(x, own, "norm")

    def head(self, x: Any, w: Tensors) -> Any:
        made = self.made
        for layer in range(3):
            x = linear(x, w, f"layer{layer}")
            x = functional.gelu(x) if layer < 2 else x
        if made != "head-without-unit-length":
            x = functional.normalize(x, dim=-1, eps=1e-6 if made == "head-eps" else 1e-12)
        direction = w["prototypes/direction"]
        if made != "head-without-weight-norm":
            direction = direction / direction.norm(dim=-1, keepdim=True)
        return x @ (w["prototypes/gain"][:, None] * direction).T

    def target(self, scores: Any, centre: Any, own: Any) -> Any:
        """What the teacher says; nobody's gradient goes through it."""
        made, cold = self.made, own["teacher_temperature"]
        if own["normaliser"] == "sinkhorn":
            share = ((scores - scores.max()) / cold).exp()
            for _ in range(own["rounds"]):
                share = share / share.sum(0)
                share = share / share.sum(1, keepdim=True)
            return share.detach()
        if made == "distill-centre-early":
            centre = self.moved_centre(centre, scores.sum(0), len(scores), own)
        if made == "distill-temperature-of-student":
            cold = own["student_temperature"]
        shift = {"distill-centre-missing": 0, "distill-centre-added": -centre}.get(made, centre)
        if made == "distill-centre-after-temperature":
            return (scores / cold - centre).softmax(-1).detach()
        return ((scores - shift) / cold).softmax(-1).detach()

    def entropies(self, scores: Any, target: Any, own: Any) -> Any:
        log_p = (scores / own["student_temperature"]).log_softmax(-1)
        if self.made == "distill-cross-entropy-swapped":
            return -(log_p.exp() * target.log()).sum(-1)
        if self.made == "distill-kl":
            return functional.kl_div(log_p, target.expand_as(log_p), reduction="none").sum(-1)
        return -(target * log_p).sum(-1)

    # ---- the four losses

    def local(self, w: Tensors, a: Tensors, teacher: Tensors, recipe: Any) -> tuple[Any, Any, int]:
        """Each local crop is to say what the teacher says of the whole view."""
        made, own, crops = self.made, recipe["local"], a["crops"]
        count, views = crops.shape[:2]
        whole = a["images"] if made == "distill-original-view" else a["whole"]
        with torch.no_grad():
            tokens = self.view(whole, teacher)
            if made == "distill-teacher-drops":
                tokens = dropped(tokens)
            said = self.head(pool(tokens, teacher), below(teacher, "local/"))
        target = self.target(said, teacher["centre/local"], own)[:, None]
        scores = self.head(pool(self.view(crops.flatten(0, 1), w), w), below(w, "local/"))
        if made == "distill-view-major":
            scores = scores.unflatten(0, (views, count)).transpose(0, 1)
        else:
            scores = scores.unflatten(0, (count, views))
        if made == "distill-centre-of-student":
            scores = scores - teacher["centre/local"]
        losses = self.entropies(scores, target, own)
        if made == "distill-diagonal-skipped":
            losses = losses[:, 1:]
        loss = losses.sum(1).mean() if made == "distill-sum-over-views" else losses.mean()
        return loss, said.sum(0), count

    def masked(self, w: Tensors, a: Tensors, teacher: Tensors, recipe: Any) -> tuple[Any, Any, int]:
        """Each hidden patch is to say what the teacher, who sees it, says there."""
        made, own, hidden = self.made, recipe["mask"], a["masked"]
        name = "local" if made == "mask-head-of-images" else "mask"
        with torch.no_grad():
            own_view = {**teacher, "mask/token": w["mask/token"]}
            whole = a["images"] if made == "distill-original-view" else a["whole"]
            tokens = self.view(whole, own_view, hidden if made == "mask-seen-by-teacher" else None)
            if made == "distill-teacher-drops":
                tokens = dropped(tokens)
            said = self.head(tokens, below(teacher, f"{name}/"))
        centre = teacher["centre/local" if made == "mask-centre-of-images" else "centre/mask"]
        target = self.target(said, centre, own)
        seen = a.get("student_whole", a["whole"])
        if made in ("mask-on-output", "mask-unused"):
            tokens = self.view(seen, w)
            if made == "mask-on-output":
                tokens = torch.where(hidden[..., None], w["mask/token"], tokens)
        else:
            tokens = self.view(seen, w, hidden)
        losses = self.entropies(self.head(tokens, below(w, f"{name}/")), target, own)
        judged = {"mask-loss-of-all": torch.ones_like(hidden), "mask-loss-of-visible": ~hidden}.get(made, hidden)
        loss = of_counted(losses, judged, "token" if made == "mask-mean-of-patches" else "example", made)
        rows = said[hidden] if made == "mask-centre-other-patches" else said.flatten(0, 1)
        return loss, rows.sum(0), len(rows)

    def captioned(self, w: Tensors, a: Tensors, recipe: Any) -> Any:
        """Three tasks, with their weights."""
        tokens = self.view(a["images"], w)
        if self.made == "caption-reads-pooled":
            tokens = pool(tokens, w)[:, None]
        if self.made == "caption-tokens-detached":
            tokens = tokens.detach()
        own = recipe["captioning"]
        tasks = (self.caption_loss(below(w, "decoder/"), below(a, f"task{i}/"), tokens, own) for i in range(3))
        return sum(share * loss for share, loss in zip(own["tasks"], tasks, strict=True))

    def sigmoid(self, w: Tensors, a: Tensors) -> Any:
        own = below(w, "text/")
        x = own["token"][a["tokens"]] + own["position"]
        pooled = linear(self.encode(x, own)[:, -1], own, "head")
        image, text = (y / (y.norm(dim=-1, keepdim=True) + 1e-8) for y in (pool(self.view(a["images"], w), w), pooled))
        return losses_of_pairs(image, text, w["log_scale"], w["bias"]).sum() / len(image)

    def terms(self, w: Tensors, a: Tensors, teacher: Tensors, settings: Any) -> tuple[Any, Tensors]:
        """The weighted sum of the losses that have a weight, and by head what the teacher said."""
        weights, recipe = dict(settings["weights"]), settings["conventions"]["recipe"]
        if self.made == "distill-weight-of-twenty-percent":
            weights |= {name: 0.2 * weights[name] for name in ("local", "mask")}
        loss, said = 0, {}
        if weights["sigmoid"]:
            loss = loss + weights["sigmoid"] * self.sigmoid(w, a)
        if weights["captions"]:
            loss = loss + weights["captions"] * self.captioned(w, a, recipe)
        for name, part in (("local", self.local), ("mask", self.masked)):
            if weights[name]:
                own, *said[name] = part(w, a, teacher, recipe)
                loss = loss + weights[name] * own
        return loss, said

    def objective(self, inputs: Tensors, settings: Any) -> Any:
        loss, _ = self.terms(below(inputs, "params/"), inputs, self.teacher_of(inputs), settings)
        return loss

    def said(self, inputs: Tensors, settings: Any) -> Tensors:
        """The sums for the centres, and the loss."""
        loss, said = self.terms(below(inputs, "params/"), inputs, self.teacher_of(inputs), settings)
        return {"loss": loss} | {f"said/{name}": total for name, (total, _) in said.items()}

    def teacher_of(self, inputs: Tensors) -> Tensors:
        return below(inputs, "teacher/") | {name: x for name, x in inputs.items() if name.startswith("centre/")}

    # ---- steps, ranks, teacher

    def steps(self, inputs: Tensors, settings: Any) -> Tensors:
        """Two steps on ranks of unequal size: losses, teacher, centres, heads."""
        params, teacher, made = below(inputs, "params/"), self.teacher_of(inputs), self.made
        recipe, ranks, out = settings["conventions"]["recipe"], settings["ranks"], {}
        for k in range(settings["steps"]):
            w = {name: value.detach().requires_grad_() for name, value in params.items()}
            shards = [below(inputs, f"step{k}/rank{rank}/") for rank in range(ranks)]
            counts = [len(shard["images"]) for shard in shards]
            if made == "recipe-unequal-shards":
                counts = [1] * ranks
            found = [self.terms(w, shard, teacher, settings) for shard in shards]
            loss = sum(n / sum(counts) * part for n, (part, _) in zip(counts, found, strict=True))
            out[f"loss{k}"] = loss.detach()
            grads = torch.autograd.grad(loss, list(w.values()), allow_unused=True)
            params = {
                n: v - settings["rate"] * (0 if g is None else g) for (n, v), g in zip(w.items(), grads, strict=True)
            }
            params = {name: value.detach() for name, value in params.items()}
            follow = {name: value.detach() for name, value in w.items()} if made == "ema-before-step" else params
            momentum = self.momentum(k + (made == "ema-momentum-late"), *settings["momentum"])
            for _ in range(ranks if made == "ema-per-micro-batch" else 1):
                teacher = {name: self.followed(name, value, follow, momentum) for name, value in teacher.items()}
            for name in found[0][1]:
                said = [parts[name] for _, parts in found]
                total, number = sum(total for total, _ in said), sum(count for _, count in said)
                if made == "distill-centre-of-rank":
                    total, number = said[0]
                if made == "distill-centre-mean-of-means":
                    total, number = sum(total / count for total, count in said) / ranks, 1
                teacher[f"centre/{name}"] = self.moved_centre(teacher[f"centre/{name}"], total, number, recipe[name])
        ends = {f"params/{name}": value for name, value in params.items() if name.startswith(("local/", "mask/"))}
        named = {name if name.startswith("centre/") else f"teacher/{name}": x for name, x in teacher.items()}
        return (
            out
            | named
            | {name: x for name, x in ends.items() if ranks == 1 or "local/" in name}
            | self.token_of(params)
        )

    def token_of(self, params: Tensors) -> Tensors:
        return {"params/mask/token": params["mask/token"]} if "mask/token" in params else {}

    def followed(self, name: str, value: Any, student: Tensors, momentum: float) -> Any:
        if name.startswith("centre/") or (self.made == "ema-head-left-out" and name.startswith(("local/", "mask/"))):
            return value
        if self.made == "ema-reversed":
            momentum = 1 - momentum
        return momentum * value + (1 - momentum) * student[name]

    def momentum(self, step: int, first: float, kind: str, total: int) -> float:
        if kind == "fixed":
            return first
        last = total - 1 if self.made == "ema-momentum-reaches-one" else total
        return 1 - (1 - first) * (1 + math.cos(math.pi * step / last)) / 2

    def moved_centre(self, centre: Any, total: Any, number: int, own: Any) -> Any:
        return own["centre_momentum"] * centre + (1 - own["centre_momentum"]) * total / number

    # ---- curation

    def curation(self, inputs: Tensors, settings: Any) -> Tensors:
        """Scores of all pairs, the chosen ones, and the loss of the step on them."""
        made, names = self.made, ("image_embed", "text_embed", "log_scale", "bias")
        learner, teacher = ([inputs[f"{who}/{name}"] for name in names] for who in ("learner", "teacher"))
        if made == "curation-one-scale":
            teacher = [*teacher[:2], *learner[2:]]
        scores = losses_of_pairs(*learner) - losses_of_pairs(*teacher)
        scores = -scores if made == "curation-sign" else scores
        noise, own, chosen = inputs["noise"], scores.diagonal(), torch.zeros(0, dtype=torch.long)
        count, rule = settings["count"], settings["rule"]
        chunk = int(count * (1 - 2**-52) / len(noise)) if made == "curation-chunk-rounded" else count // len(noise)
        for gumbel in noise:
            rows, columns = scores[chosen].sum(0), scores[:, chosen].sum(1)
            gain = {
                "curation-diagonal-only": own, "curation-rows-only": own + rows, "curation-columns-only": own + columns
            }.get(made, own + rows + columns)  # fmt: skip
            gain = gain / (2 * len(chosen) + 1) if rule["divided"] else gain
            if not len(chosen):
                gain = torch.zeros_like(own) if rule["first"] == "uniform" else (own - own.min()).log()
            if made != "curation-with-replacement":
                gain = gain.index_fill(0, chosen, -torch.inf)
            total = gain + (0 if made == "curation-without-noise" else gumbel)
            if made == "curation-sublist-indices":
                total = total[[i for i in range(len(own)) if i not in chosen.tolist()]]
            chosen = torch.cat([chosen, total.argsort(descending=True, stable=True)[:chunk]])
        picked = [learner[0][chosen].requires_grad_(), learner[1][chosen].requires_grad_()]
        given = [*picked, *(scalar.clone().requires_grad_() for scalar in learner[2:])]
        loss = losses_of_pairs(*given).sum() / max(len(chosen), 1)
        grads = dict(zip((f"d_{name}" for name in names), torch.autograd.grad(loss, given), strict=True))
        return {"scores": scores, "chosen": chosen.to(noise.dtype), "loss": loss} | grads


def dropped(x: Any) -> Any:
    """A tenth of the elements is zero, and the rest larger: which ones, is the check's own draw."""
    from siglip_ref.mistakes.change import dropped as same

    return torch.as_tensor(same(x.numpy()), dtype=x.dtype)
