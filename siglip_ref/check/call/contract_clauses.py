"""The contract of a differentiable loss: what hand-written backwards break while a plain backward is right."""

from dataclasses import dataclass

from siglip_ref.check.call.frameworks import ALONE, Way


@dataclass(frozen=True)
class Clause:
    """One way to call the loss. times: the gradients must be that many times the plain ones; layout: it changes where
    numbers lie in memory, and nothing else."""

    way: Way
    label: str
    id: str
    suspicion: str
    repair: str
    times: float = 1.0
    layout: bool = False


_ONLY = "where only some inputs require a gradient, backward returns gradients in a wrong place, or leaves one out"
_ONLY_REPAIR = "return one gradient per input of forward, in their order, whatever ctx.needs_input_grad says"

CLAUSES: dict[Way, Clause] = {
    clause.way: clause
    for clause in (
        Clause(
            "again",
            "called again",
            "not-reproducible",
            "a second call with the same inputs gives another result: random numbers, or state kept between calls",
            "keep nothing on the function or the class; sizes and labels belong to the call",
        ),
        Clause(
            "upstream",
            "upstream gradient 3",
            "upstream-gradient-ignored",
            "backward does not multiply by the gradient that comes in: a plain loss.backward() cannot show it, "
            "but loss scaling and weighted sums of losses are wrong",
            "multiply every gradient by grad_output in backward",
            3.0,
        ),
        Clause(
            "accumulate",
            "second backward adds up",
            "gradients-not-accumulated",
            "after two backward passes the gradients are not twice those of one: they are overwritten, or state is "
            "kept between calls",
            "return gradients from backward, never assign .grad; build everything anew in forward",
            2.0,
        ),
        Clause(
            "two graphs",
            "another forward in between",
            "state-shared-between-calls",
            "a second forward changes the gradients of the first: they share a buffer",
            "save tensors with ctx.save_for_backward, not on a class or in a buffer that is used again",
        ),
        Clause(
            "strided",
            "inputs not contiguous",
            "contiguity-assumed",
            "inputs whose rows are not contiguous in memory are read wrongly",
            "call .contiguous() first, or use the strides",
            layout=True,
        ),
        Clause(
            "eager",
            "without jit",
            "differs-without-jit",
            "the result without jit differs from that under jit",
            "look for Python values that were frozen when the function was traced",
        ),
        *(Clause(way, f"gradient of {way}", "partial-gradients", _ONLY, _ONLY_REPAIR) for way in ALONE),
    )
}
