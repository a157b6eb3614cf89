# scale and bias are synchronised by hand (sum) inside the loss, DDP averages them besides
import torch, torch.distributed as dist, torch.nn.functional as F
class GatherLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.b = len(x)
        out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(out, x.contiguous())
        return torch.cat(out)
    @staticmethod
    def backward(ctx, g):
        g = g.contiguous().clone()
        dist.all_reduce(g)
        r = dist.get_rank()
        return g[r * ctx.b:(r + 1) * ctx.b]
gather = GatherLayer.apply

class Sync(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        dist.all_reduce(g)
        return g
def loss(img, txt, log_scale, bias, rank, world_size):
    z = Sync.apply(log_scale).exp() * img @ gather(txt).T + Sync.apply(bias)
    y = -torch.ones_like(z)
    i = torch.arange(len(img))
    y[i, rank * len(img) + i] = 1
    return F.softplus(-y * z).sum() / len(img)
def check():
    import siglip_ref as sr
    return sr.check_ranks(loss, world_size=2)
