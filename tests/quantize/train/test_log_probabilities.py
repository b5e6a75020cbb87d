"""Log-probabilities of chosen tokens are those of a softmax over all, and so are their gradients."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from specport.quantize.train import log_probabilities  # noqa: E402
from specport.quantize.train.log_probabilities import HeadPart  # noqa: E402

ROWS, WIDTH, FIRST, MORE = 23, 6, 37, 5  # predictions, and columns of two parts of a head


def case() -> tuple[Any, list[HeadPart], Any]:
    """Return outputs, a head whose second part most predictions cannot have, and columns with gaps."""
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(ROWS, WIDTH, generator=rng)
    weights = [torch.randn(count, WIDTH, generator=rng) for count in (FIRST, MORE)]
    unseen = torch.rand(ROWS, MORE, generator=rng) < 0.6
    columns = torch.randint(-1, FIRST + MORE, (ROWS, 4), generator=rng)
    columns[:, 3] = columns[:, 0]  # the text's token is among the likeliest, too
    return outputs, [HeadPart(weights[0]), HeadPart(weights[1], unseen)], columns


def by_softmax(outputs: Any, parts: list[HeadPart], columns: Any) -> tuple[Any, Any]:
    logits = torch.cat([outputs @ part.weight.T for part in parts], dim=1)
    for part, start in zip(parts, (0, FIRST), strict=True):
        if part.forbidden is not None:
            hidden = torch.zeros(len(outputs), logits.shape[1], dtype=torch.bool)
            hidden[:, start : start + len(part.weight)] = part.forbidden
            logits = logits.masked_fill(hidden, -torch.inf)
    log_q = torch.log_softmax(logits, dim=-1)
    logs = torch.where(columns >= 0, log_q.gather(1, columns.clamp(min=0)), -torch.inf)
    return logs, log_q.amax(dim=-1)


@pytest.mark.parametrize(("rows", "columns"), [(4, 8), (23, 42), (256, 4096)])
def test_they_are_those_of_a_softmax(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probabilities, "_ROWS", rows)
    monkeypatch.setattr(log_probabilities, "_COLUMNS", columns)
    outputs, parts, chosen = case()
    weights = torch.rand(chosen.shape)
    found = []
    for method in (log_probabilities.log_probabilities, by_softmax):
        inputs = outputs.clone().requires_grad_()
        logs, best = method(inputs, parts, chosen)
        (weights * torch.where(logs.isfinite(), logs, 0.0)).sum().backward()
        found.append((logs.detach(), best.detach(), inputs.grad))
    assert torch.equal(found[0][0].isfinite(), found[1][0].isfinite())
    assert not found[0][0].isfinite().all() and found[0][2].abs().max() > 0
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_columns_that_nobody_may_have_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probabilities, "_COLUMNS", 8)  # the first blocks are forbidden as a whole
    outputs, ((weight, _), _), _ = case()
    never = (torch.arange(FIRST) < 20)[None]
    chosen = torch.arange(FIRST).expand(ROWS, FIRST)
    logs, best = log_probabilities.log_probabilities(outputs, [HeadPart(weight, never)], chosen)
    assert (logs[:, :20] == -torch.inf).all()
    assert torch.allclose(logs[:, 20:], torch.log_softmax(outputs @ weight[20:].T, dim=-1), atol=1e-5)
    assert torch.equal(best, logs.amax(dim=1))


def test_the_type_is_that_of_autocast() -> None:
    outputs, parts, chosen = case()
    exact, _ = log_probabilities.log_probabilities(outputs, parts, chosen)
    with torch.autocast("cpu", torch.bfloat16):
        coarse, _ = log_probabilities.log_probabilities(outputs, parts, chosen)
    there = exact.isfinite()
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, exact)
    assert torch.allclose(coarse[there], exact[there], atol=0.1)
