"""Losses of chains: their values by definition, and their gradients by formula and by finite differences."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from specport.quantize.train.losses import CHAIN_LOSSES, Drafted, overlaps  # noqa: E402

CHAINS, COLUMNS, DEPTH = 3, 11, 3
NAMES = [*CHAIN_LOSSES]


def case(seed: int = 0) -> tuple[Any, Any, Any]:
    """Return logits and the target's probabilities [depth, chains, columns], and answers [depth, chains].

    A tenth of the target's mass lies at ids that the head has no column for.
    """
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(DEPTH, CHAINS, COLUMNS, generator=rng, dtype=torch.float64)
    probs = 0.9 * torch.softmax(2.0 * torch.randn(DEPTH, CHAINS, COLUMNS, generator=rng).double(), dim=-1)
    return logits, probs, torch.randint(COLUMNS, (DEPTH, CHAINS), generator=rng)


def loss_of(name: str, logits: Any, probs: Any, answer: Any) -> Any:
    loss = CHAIN_LOSSES[name]
    return loss.join([loss.value(Drafted(*step)) for step in zip(logits, probs, answer, strict=True)])


def by_definition(name: str, logits: Any, probs: Any, answer: Any) -> Any:
    """Return a loss from its definition, which autograd can differentiate."""
    log_q = torch.log_softmax(logits, dim=-1)
    q, p = log_q.exp(), probs / probs.sum(dim=-1, keepdim=True)
    alpha = torch.minimum(q, probs).sum(dim=-1)
    kl = (p * (p.log() - log_q)).sum(dim=-1)
    share = torch.exp(-3.0 * alpha.detach())
    return {
        "ce": -log_q.gather(2, answer[:, :, None]).mean(),
        "kl": kl.mean(),
        "tv": 1.0 - alpha.mean(),
        "e2e-tv": 1.0 - (alpha[0] + alpha[0] * alpha[1] + alpha[0] * alpha[1] * alpha[2]).mean() / 3,
        "lk": -alpha.log().mean(),
        "lk-mix": (share * kl + (1.0 - share) * (1.0 - alpha)).mean(),
    }[name]


def gradient(function: Any, name: str, logits: Any, *rest: Any) -> Any:
    own = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(name, own, *rest), own)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_definition(name: str) -> None:
    logits, *rest = case()
    assert float(loss_of(name, logits, *rest)) == pytest.approx(
        float(by_definition(name, logits, *rest)), abs=1e-6
    )
    found, wanted = (gradient(f, name, logits, *rest) for f in (loss_of, by_definition))
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_the_published_formula(name: str) -> None:
    """Of KL q - p, of TV q (S - 1[q <= p]) as in Bebop, and how depths and logarithms weigh it."""
    logits, probs, answer = case(1)
    q, p = torch.softmax(logits, dim=-1), probs / probs.sum(dim=-1, keepdim=True)
    alpha = torch.minimum(q, probs).sum(dim=-1, keepdim=True)
    under = (q <= probs).double()
    tv = q * ((under * q).sum(dim=-1, keepdim=True) - under)
    weights = torch.stack(  # -dL/d alpha_k = (1/depth) sum_{j>=k} prod_{i<=j, i!=k} alpha_i
        [
            sum(
                torch.stack([alpha[i] for i in range(j + 1) if i != k] or [torch.ones_like(alpha[0])]).prod(
                    dim=0
                )
                for j in range(k, DEPTH)
            )
            for k in range(DEPTH)
        ]
    )
    share = torch.exp(-3.0 * alpha)
    wanted = {
        "ce": q - torch.nn.functional.one_hot(answer, COLUMNS),
        "kl": q - p,
        "tv": tv,
        "e2e-tv": weights * tv,
        "lk": tv / alpha,
        "lk-mix": share * (q - p) + (1.0 - share) * tv,
    }[name] / (DEPTH * CHAINS)
    assert torch.allclose(gradient(loss_of, name, logits, probs, answer), wanted, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(name: str) -> None:
    logits, *rest = case(2)
    found, step = gradient(loss_of, name, logits, *rest), 1e-5
    # The share of KL in the mix is a constant for the gradient, so it is held here.
    reference = by_definition if name != "lk-mix" else _held(*case(2))
    for place in [(0, 0, 0), (1, 2, 5), (2, 1, 10)]:
        values = []
        for sign in (1, -1):
            moved = logits.clone()
            moved[place] += sign * step
            values.append(float(reference(name, moved, *rest)))
        assert float(found[place]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


def _held(logits: Any, probs: Any, answer: Any) -> Any:
    share = torch.exp(-3.0 * torch.minimum(torch.softmax(logits, dim=-1), probs).sum(dim=-1))

    def loss(name: str, logits: Any, probs: Any, answer: Any) -> Any:
        log_q = torch.log_softmax(logits, dim=-1)
        p = probs / probs.sum(dim=-1, keepdim=True)
        alpha = torch.minimum(log_q.exp(), probs).sum(dim=-1)
        return (share * (p * (p.log() - log_q)).sum(dim=-1) + (1.0 - share) * (1.0 - alpha)).mean()

    return loss


def test_the_overlap_is_the_share_of_accepted_samples() -> None:
    logits, probs, _ = case(3)
    q, p = torch.softmax(logits[0, 0], dim=-1), probs[0, 0]
    rng = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(q, 20000, replacement=True, generator=rng)
    accepted = torch.rand(20000, generator=rng, dtype=torch.float64) < (p / q)[drawn]
    assert float(accepted.double().mean()) == pytest.approx(float(overlaps(logits[0, 0], p)), abs=0.01)


def test_only_the_loss_of_the_chain_wants_whole_chains() -> None:
    assert {name for name, loss in CHAIN_LOSSES.items() if loss.whole} == {"e2e-tv"}
