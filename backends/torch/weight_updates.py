"""Replace the weights of a loaded decoder in place: the `WeightUpdates` port on torch.

Parameters keep their memory, so captured graphs stay valid. Packed layers are packed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch.packed_linear import PackedLinear

from specport.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

Follower = Callable[["Tensor"], None]  # called with the new rows [vocab, width] of the language-model head


class Layout:
    """Hold the names and shapes of a transformers decoder's weights, and which of them are one tensor.

    Make it before linear layers are packed: packing separates a head from the embeddings that it shares.
    """

    def __init__(self, model: Any) -> None:
        named = dict(model.named_parameters(remove_duplicate=False))
        kept = model.state_dict().keys()  # without buffers that are computed
        named |= {name: buffer for name, buffer in model.named_buffers() if name in kept}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
        groups: dict[int, list[str]] = {}
        for name, tensor in named.items():
            groups.setdefault(id(tensor), []).append(name)
        self.same = {name: group for group in groups.values() for name in group}
        head = model.get_output_embeddings()
        self.head = next((name for name, tensor in named.items() if tensor is head.weight), None)


class LiveWeights:
    """Implement `WeightUpdates` for a decoder that is ready to run.

    layout:    of the decoder as it was read.
    followers: hold rows of the head, and are told of new ones.
    """

    def __init__(self, model: Any, layout: Layout, followers: Sequence[Follower]) -> None:
        self._model, self._layout, self._followers = model, layout, followers

    @classmethod
    def of(cls, model: Any, layout: Layout, followers: Sequence[Follower] = ()) -> LiveWeights | None:
        """Return the updates of a decoder; None where some weight is out of reach, as packed experts are."""
        found = cls(model, layout, followers)
        reached = all(found._holder(name) is not None for name in layout.shapes)
        return found if reached else None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._layout.shapes

    def check(self, weights: Mapping[str, Any]) -> None:
        for name, value in weights.items():
            want = self.shapes.get(name)
            if want is None:
                raise InvalidInput(
                    f"the model has no weight {name!r:.200}",
                    f"its first ones are {', '.join([*self.shapes][:3])}",
                )
            if tuple(value.shape) != want:
                raise InvalidInput(f"the weight {name} is {want}, not {tuple(value.shape)}")
            for other in self._layout.same[name]:
                if other in weights and not _equal(value, weights[other]):
                    raise InvalidInput(
                        f"{name} and {other} are one weight of this model, and differ", f"leave out {other}"
                    )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def replace(self, weights: Mapping[str, Any]) -> None:
        self.check(weights)
        for name, value in weights.items():
            new = torch.as_tensor(value).detach()
            for own in self._layout.same[name]:
                self._put(own, new)
            if self._layout.head in self._layout.same[name]:
                for follow in self._followers:
                    follow(new)

    def _holder(self, name: str) -> Any:
        """Return the module that has a weight; None where it is not there any more."""
        path, _, attribute = name.rpartition(".")
        try:
            module = self._model.get_submodule(path)
        except AttributeError:
            return None
        held = getattr(module, attribute, None)
        return module if isinstance(held, torch.Tensor) and tuple(held.shape) == self.shapes[name] else None

    def _put(self, name: str, new: Tensor) -> None:
        path, _, attribute = name.rpartition(".")
        put(self._model.get_submodule(path), attribute, new)


def put(module: Any, attribute: str, new: Tensor) -> None:
    """Write a tensor over a module's weight or buffer, in that one's precision and on its device."""
    if isinstance(module, PackedLinear) and attribute == "weight":
        module.pack(new)
    else:
        getattr(module, attribute).copy_(new)


def _equal(first: Any, second: Any) -> bool:
    a, b = torch.as_tensor(first), torch.as_tensor(second)
    return a is b or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or bool(torch.equal(a, b))
