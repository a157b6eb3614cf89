# An image tower of our own (for a VLM: last hidden state, no pooling) of torch's encoder layers, post-norm by default.
import torch
from torch import nn
import siglip_ref as sr
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.names import Entry, dense, fused, norm

SIZE = Tower(width=32, depth=2, mlp=64, heads=4)
H, W, P = 32, 32, 8

class Tower_(nn.Module):
    def __init__(self):
        super().__init__()
        c = SIZE.width
        self.patches = nn.Conv2d(3, c, P, P)
        self.positions = nn.Parameter(torch.randn(H * W // P**2, c) * 0.02)
        self.layers = nn.Sequential(*[nn.TransformerEncoderLayer(c, SIZE.heads, SIZE.mlp, 0.0, nn.GELU("tanh"), 1e-6, batch_first=True) for _ in range(SIZE.depth)])
        self.norm = nn.LayerNorm(c, 1e-6)
    def forward(self, x):
        return self.norm(self.layers(self.patches(x).flatten(2).mT + self.positions))

TABLE = [Entry("image/patch/kernel", "patches.weight", "patch"), Entry("image/patch/bias", "patches.bias"), Entry("image/position", "positions"), *norm("image/norm", "norm")]
TAPS = [Tap("image/stem", "layers", "input"), Tap("image/norm", "norm")]
for i in range(SIZE.depth):
    o, t = f"image/block{i:02d}", f"layers.{i}"
    TABLE += [*norm(f"{o}/norm1", f"{t}.norm1"), *fused(f"{o}/attn", f"{t}.self_attn.in_proj", joint="_"), *dense(f"{o}/attn/out", f"{t}.self_attn.out_proj"), *norm(f"{o}/norm2", f"{t}.norm2"), *dense(f"{o}/mlp/in", f"{t}.linear1"), *dense(f"{o}/mlp/out", f"{t}.linear2")]
    TAPS += [Tap(f"{o}/+mlp", t)]
CFG = sr.one_tower(Config("own tower", SIZE, SIZE, (H, W), P, 29, 9, conventions=sr.preset("huggingface")), "image", "last")

def loss(model, images, tokens):
    y = model(images)
    return (y * torch.as_tensor(sr.probe_objective(tuple(y.shape)), dtype=y.dtype)).sum(), {}

def check():
    torch.manual_seed(0)
    return sr.check_model(TorchModel("own tower", Tower_(), CFG, tuple(TABLE), tuple(TAPS), loss))
