"""A torch model as an Adapter: a table of names, a table of taps, a loss. The model itself is never written to."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.call.held import put_back
from siglip_ref.check.call.held_torch import leaves_under
from siglip_ref.check.call.module_in_torch import Swapped
from siglip_ref.check.model.adapters import Dtype, Hint, Run
from siglip_ref.check.model.adapters.torch_lacking import require_all
from siglip_ref.check.model.adapters.torch_reads import in_the_graph, not_read, require_numbers
from siglip_ref.checkpoint.tables.names import Table, Tensor, require_match, to_ours, to_theirs
from siglip_ref.model.naflex import Patches
from siglip_ref.process.isolated import as_it_was


@dataclass(frozen=True)
class Tap:
    """Where an activation of ours can be read: the input or output of a module."""

    ours: str
    module: str
    side: Literal["input", "output"] = "output"


class Patched(NamedTuple):
    """Images as a NaFlex model takes them: patches (B, N, P), which of them are an image's own, rows and columns."""

    values: torch.Tensor
    mask: torch.Tensor
    grids: torch.Tensor


# model, images (B, 3, height, width) or `Patched`, tokens (B, N) -> the loss, and the activations that no module gives
Loss = Callable[[nn.Module, Any, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class TorchModel:
    """An Adapter for any torch model.

    Parameters
    ----------
    name : title of the report
    model : any module; its parameters are replaced for the length of a call, never written to
    config : sizes and conventions
    table : what it calls our parameters
    taps : where our activations can be read
    loss : how its loss is computed; also returns embeddings and logits, by our names
    coarsest : a dtype that some step inside is forced to, whatever the model's own
    ignored : parameters that take no part
    hints : what its settings give away
    device : where it computes, on copies; None: where it is
    """

    name: str
    model: nn.Module
    config: Config
    table: Table
    taps: tuple[Tap, ...]
    loss: Loss
    coarsest: Dtype = "float64"
    ignored: tuple[str, ...] = ()
    hints: tuple[Hint, ...] = ()
    device: str | None = None

    def __post_init__(self) -> None:
        require_numbers(self.model)
        require_all(self.model, (entry.theirs for entry in self.table), self.ignored, self.config.name)
        found = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        require_match(self.table, found, self.config, self.ignored)

    def parameters(self, dtype: Dtype) -> dict[str, Tensor]:
        """The model's own weights, rounded to dtype."""
        return self._collect({name: p.detach().to(getattr(torch, dtype)) for name, p in self._used()})

    def run(self, params: Mapping[str, Tensor], images: Any, tokens: Tensor, dtype: Dtype) -> Run:
        """One forward and backward pass at the given weights."""
        kind = getattr(torch, dtype)
        taken: dict[str, Tensor] = {}
        absent, differing = [], set[str]()
        with undisturbed(self.model, self.place), ExitStack() as hooks:
            stand_ins = self._stand_ins(params, kind)
            for tap in self.taps:
                try:
                    hooks.enter_context(_tapped(self.model, tap, taken, differing))
                except AttributeError:
                    absent.append(tap)
            given_to = self.inputs(images, tokens, dtype)
            elsewhere = list[str]()
            with in_the_graph(self.model) as originals:

                def both_ways(model: nn.Module, *inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                    loss, shown = self.loss(model, *inputs)
                    elsewhere.extend(originals[id(leaf)] for leaf in leaves_under(loss) if id(leaf) in originals)
                    # where the graph leads to the user's own parameters, nothing of theirs may run
                    torch.autograd.backward(loss, inputs=_ours(stand_ins) if elsewhere else None)
                    return loss, shown

                loss, given = torch.func.functional_call(Swapped(self.model, both_ways), stand_ins, given_to)
            # further passes go through the same hooks
            shown = {name: value for name, value in taken.items() if name not in differing}
            several = [tap for tap in self.taps if tap.ours in differing]
            silent = [name for name, _ in self._used() if stand_ins["module." + name].grad is None]
            unread = not_read(Swapped(self.model, self.loss), stand_ins, given_to, silent, (loss, given))
        activations = shown | {name: to_numpy(value) for name, value in given.items()}
        unreached = [tap for tap in self.taps if tap.ours not in shown and tap not in (*absent, *several)]
        notes = [f"no gradient reached {name}: it counts as zero" for name in silent]
        grads = {name: _gradient(stand_ins["module." + name]) for name, _ in self._used()}
        not_checked = [f"{tap.ours}: the model has no module {tap.module!r}" for tap in absent]
        not_checked += [f"{tap.ours}: the pass never called {tap.module!r}" for tap in unreached]
        not_checked += [f"{tap.ours}: one pass calls {tap.module!r} again, with other numbers" for tap in several]
        names = {tap.ours: f"{tap.side} of {tap.module}" for tap in self.taps} | {e.ours: e.theirs for e in self.table}
        unread = [*dict.fromkeys([*elsewhere, *unread])]
        return Run(to_numpy(loss), activations, self._collect(grads), names, not_checked, notes, unread, elsewhere)

    @property
    def place(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.device) if self.device else next(self.model.parameters()).device

    @property
    def dtype(self) -> str:
        """The format of its parameters."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def inputs(self, images: Any, tokens: Tensor, dtype: str | None = None) -> tuple[Any, torch.Tensor]:
        """Images (B, 3, height, width) in dtype, the parameters' own by default, or `Patched` ones; and tokens (B, N),
        where it computes."""
        device, kind = self.place, getattr(torch, dtype or self.dtype)
        if isinstance(images, Patches):
            mask, grids = (torch.from_numpy(np.asarray(x, np.int64)).to(device) for x in (images.seen, images.grids))
            values = torch.from_numpy(np.ascontiguousarray(images.values)).to(device, kind)
            return Patched(values, mask, grids), torch.from_numpy(np.ascontiguousarray(tokens)).to(device)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device, kind)
        return pixels, torch.from_numpy(np.ascontiguousarray(tokens)).to(device)

    def write(self, params: Mapping[str, Tensor]) -> None:
        """Give the model these weights, in place. The caller puts its own ones back."""
        stand_ins = self._stand_ins(params, getattr(torch, self.dtype))
        with torch.no_grad():
            for name, p in self._used():
                p.copy_(stand_ins["module." + name])

    def _used(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if name not in self.ignored)

    def _stand_ins(self, params: Mapping[str, Tensor], kind: torch.dtype) -> dict[str, torch.Tensor]:
        """Tensors that take the places of the model's parameters and floating buffers, in dtype `kind`."""
        tensors: dict[str, torch.Tensor] = {}
        for name, p in self.model.named_parameters():
            own = p.detach().clone() if name in self.ignored else torch.empty_like(p, dtype=kind, requires_grad=False)
            tensors["module." + name] = own.to(self.place, kind)
        for entry in self.table:
            place = tensors["module." + entry.theirs]
            which, parts = entry.part
            rows = place if parts == 1 else place.unflatten(0, (parts, -1))[which]
            ours = np.ascontiguousarray(to_theirs(params[entry.ours], entry, self.config.patch))
            rows.copy_(torch.from_numpy(ours).reshape(rows.shape))
        for name, _ in self._used():
            tensors["module." + name].requires_grad_(True)
        for name, buffer in self.model.named_buffers():
            copy = buffer.detach().clone().to(self.place)  # a model may count in a buffer
            tensors["module." + name] = copy.to(kind) if buffer.is_floating_point() else copy
        return tensors

    def _collect(self, theirs: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
        """Tensors in their names to arrays in ours."""
        wanted, arrays = shapes(self.config), {name: to_numpy(tensor) for name, tensor in theirs.items()}
        return {entry.ours: to_ours(arrays[entry.theirs], entry, wanted[entry.ours]) for entry in self.table}


def _ours(stand_ins: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in stand_ins.values() if tensor.requires_grad]


def _gradient(stand_in: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(stand_in, requires_grad=False) if stand_in.grad is None else stand_in.grad


def to_numpy(tensor: torch.Tensor) -> Tensor:
    """A copy as float64 (from float64) or float32 (from anything narrower, exactly)."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return np.array(tensor.detach().to("cpu", wide).numpy())


@contextmanager
def undisturbed(model: nn.Module, place: torch.device | None = None) -> Iterator[None]:
    """Evaluation mode, gradients on, no autocast; afterwards all is as it was: modes, random states, default dtype,
    what the model keeps beside its parameters, and their gradients. place : where it computes, if not where it is"""
    device = place or next(model.parameters()).device
    cuda = device.type == "cuda"
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with (
        as_it_was(),
        put_back(model, parameters=False),
        torch.random.fork_rng([device] if cuda else []),
        torch.inference_mode(False),  # which turns gradients on, too
        torch.autocast(device.type, enabled=False),
    ):
        try:
            if cuda:  # float32 means float32: TF32 has a thousandth of its precision
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            model.eval()
            yield
        finally:
            if cuda:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def _tapped(model: nn.Module, tap: Tap, taken: dict[str, Tensor], differing: set[str]) -> Iterator[None]:
    """A hook that copies one activation into `taken`, removed at the end. Of a module that is called again with other
    numbers, image by image, no call shows the whole activation: it goes to `differing`. Recomputing gives the same."""
    module = model.get_submodule(tap.module)

    def keep(value: Any) -> None:
        while isinstance(value, tuple | list):
            value = value[0]
        now = to_numpy(value)
        if not np.array_equal(taken.setdefault(tap.ours, now), now, equal_nan=True):
            differing.add(tap.ours)

    if tap.side == "output":
        handle = module.register_forward_hook(lambda _, __, out: keep(out))
    else:
        handle = module.register_forward_pre_hook(
            lambda _, args, named: keep(args or next(iter(named.values()))), with_kwargs=True
        )
    try:
        yield
    finally:
        handle.remove()
