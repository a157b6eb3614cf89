"""torchvision is not installed here; timm and open_clip only need its names."""
import sys, types, enum, importlib.machinery
class InterpolationMode(enum.Enum):
    NEAREST="nearest"; NEAREST_EXACT="nearest-exact"; BILINEAR="bilinear"; BICUBIC="bicubic"; BOX="box"; HAMMING="hamming"; LANCZOS="lanczos"
def install():
    if "torchvision" in sys.modules: return
    def ga(name):
        if name.startswith("__"): raise AttributeError(name)
        if name=="InterpolationMode": return InterpolationMode
        return type(name,(),{})
    for n in ("torchvision","torchvision.ops","torchvision.ops.misc","torchvision.transforms","torchvision.transforms.functional","torchvision.transforms.v2","torchvision.transforms.v2.functional","torchvision.datasets","torchvision.io","torchvision.models","torchvision.models.feature_extraction","torchvision.utils"):
        m = types.ModuleType(n); m.__path__=[]; m.__spec__=importlib.machinery.ModuleSpec(n,None)
        m.__getattr__ = ga
        sys.modules[n]=m
        if "." in n: setattr(sys.modules[n.rsplit(".",1)[0]], n.rsplit(".",1)[1], m)
