"""Check a torch model of your own: what it calls our parameters, where our activations can be read, what its loss is.

Run it: python examples/check_torch_model.py
The model below is built from torch's own TransformerEncoderLayer; everything from `TABLE` on is what you would write.
"""

import torch
from torch import nn

import siglip_ref as sr
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.names import Entry, dense, fused, norm

IMAGE, TEXT = Tower(width=10, depth=2, mlp=13, heads=2), Tower(width=12, depth=2, mlp=17, heads=2)
HEIGHT, WIDTH, PATCH, VOCABULARY, LENGTH, EPS = 12, 28, 4, 29, 9, 1e-6


class MyImageTower(nn.Module):
    def __init__(self):
        super().__init__()
        c = IMAGE.width
        self.patches = nn.Conv2d(3, c, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn(HEIGHT * WIDTH // PATCH**2, c))
        self.blocks = encoder(IMAGE)
        self.norm = nn.LayerNorm(c, EPS)
        self.probe = nn.Parameter(torch.randn(1, 1, c))
        self.attention = nn.MultiheadAttention(c, IMAGE.heads, batch_first=True)
        self.head_norm = nn.LayerNorm(c, EPS)
        self.mlp = nn.Sequential(nn.Linear(c, IMAGE.mlp), nn.GELU("tanh"), nn.Linear(IMAGE.mlp, c))

    def forward(self, images):
        x = self.patches(images).flatten(2).mT + self.positions
        x = self.norm(self.blocks(x))
        x, _ = self.attention(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


class MyTextTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, TEXT.width)
        self.positions = nn.Parameter(torch.randn(LENGTH, TEXT.width))
        self.blocks = encoder(TEXT)
        self.norm = nn.LayerNorm(TEXT.width, EPS)
        self.head = nn.Linear(TEXT.width, IMAGE.width)

    def forward(self, tokens):
        x = self.blocks(self.tokens(tokens) + self.positions)
        return self.head(self.norm(x)[:, -1])


class MyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = MyImageTower(), MyTextTower()
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-10.0))

    def forward(self, images, tokens):
        image, text = (nn.functional.normalize(x, dim=-1) for x in (self.image(images), self.text(tokens)))
        return image, text, self.log_scale.exp() * image @ text.T + self.bias


def encoder(tower):
    block = [
        nn.TransformerEncoderLayer(
            tower.width, tower.heads, tower.mlp, 0.0, nn.GELU("tanh"), EPS, batch_first=True, norm_first=True
        )
        for _ in range(tower.depth)
    ]
    return nn.Sequential(*block)


# Our names (siglip_ref.architecture.params.shapes(CONFIG) lists them) beside those of MyModel.
TABLE = [
    Entry("image/patch/kernel", "image.patches.weight", "patch"),
    Entry("image/patch/bias", "image.patches.bias"),
    Entry("image/position", "image.positions"),
    *norm("image/norm", "image.norm"),
    Entry("image/pool/probe", "image.probe"),
    *fused("image/pool/attn", "image.attention.in_proj", joint="_"),
    *dense("image/pool/attn/out", "image.attention.out_proj"),
    *norm("image/pool/norm", "image.head_norm"),
    *dense("image/pool/mlp/in", "image.mlp.0"),
    *dense("image/pool/mlp/out", "image.mlp.2"),
    Entry("text/token", "text.tokens.weight"),
    Entry("text/position", "text.positions"),
    *norm("text/norm", "text.norm"),
    *dense("text/head", "text.head"),
    Entry("log_scale", "log_scale"),
    Entry("bias", "bias"),
]
TAPS = [
    Tap("image/norm", "image.norm"),
    Tap("image/pool", "image"),
    Tap("text/norm", "text.norm"),
    Tap("text/pool", "text.head", "input"),
    Tap("text/head", "text.head"),
]
for tower, depth in (("image", IMAGE.depth), ("text", TEXT.depth)):
    TAPS.append(Tap(f"{tower}/stem", f"{tower}.blocks", "input"))
    for i in range(depth):
        ours, theirs = f"{tower}/block{i:02d}", f"{tower}.blocks.{i}"
        TABLE += norm(f"{ours}/norm1", f"{theirs}.norm1")
        TABLE += fused(f"{ours}/attn", f"{theirs}.self_attn.in_proj", joint="_")
        TABLE += dense(f"{ours}/attn/out", f"{theirs}.self_attn.out_proj")
        TABLE += norm(f"{ours}/norm2", f"{theirs}.norm2")
        TABLE += dense(f"{ours}/mlp/in", f"{theirs}.linear1")
        TABLE += dense(f"{ours}/mlp/out", f"{theirs}.linear2")
        TAPS += [Tap(f"{ours}/+attn", f"{theirs}.norm2", "input"), Tap(f"{ours}/+mlp", theirs)]

CONFIG = Config(
    "my model",
    IMAGE,
    TEXT,
    (HEIGHT, WIDTH),
    PATCH,
    VOCABULARY,
    LENGTH,
    conventions=sr.preset("open_clip", image_gelu="tanh", text_gelu="tanh"),  # nn.functional.normalize is open_clip's
)


def loss(model, images, tokens):
    """The loss, and what no module's input or output shows."""
    image, text, logits = model(images, tokens)
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    value = -nn.functional.logsigmoid(signs * logits).sum() / len(logits)
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def model():
    """What `siglip-ref check model examples/check_torch_model.py:model` checks."""
    return TorchModel("my model", MyModel(), CONFIG, tuple(TABLE), tuple(TAPS), loss)


if __name__ == "__main__":
    report = sr.check_model(model(), dtype="float32")
    print(report)
    report.raise_if_failed()
