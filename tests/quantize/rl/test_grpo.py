"""GRPO's advantages, loss and gradient, against cases computed by hand and by differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from specport.quantize.rl import grpo  # noqa: E402


def test_advantages_compare_samples_of_one_prompt() -> None:
    found = grpo.advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.4, 0.4, 0.4, 0.4], [3.0, 0.0, 0.0, 0.0]]))
    spread = math.sqrt(27 / 16)
    assert found[0].tolist() == pytest.approx([1, -1, -1, 1], abs=1e-3)
    assert found[1].tolist() == [0, 0, 0, 0]
    assert found[2].tolist() == pytest.approx([2.25 / spread] + [-0.75 / spread] * 3, abs=1e-3)


@pytest.mark.parametrize("samples", range(2, 12))
def test_equal_rewards_are_no_advantage(samples: int) -> None:
    """To the bit, although the mean of some is not one of them."""
    rewards = torch.tensor([[i / 30] * samples for i in range(31)])
    assert not grpo.advantages(rewards).any()


def test_loss_and_gradient_by_hand() -> None:
    # Ratios 1.5, 0.5 | 0.9, 1.5: with a positive advantage gains stop at 1.2, with a negative one at 0.8.
    ratios = torch.tensor([[1.5, 0.5, 7.0], [0.9, 1.5, 0.5]])
    behaviour = torch.full((2, 3), -2.0)
    logprobs = (behaviour + ratios.log()).requires_grad_()
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    loss = grpo.loss(logprobs, behaviour, torch.tensor([2.0, -1.0]), mask)
    first = (2 * 1.2 + 2 * 0.5) / 2
    second = (-0.9 - 1.5 - 0.8) / 3
    assert loss.item() == pytest.approx(-(first + second) / 2)
    loss.backward()
    # d(r A)/d(logprob) = r A where it is not clipped; a sample's tokens share its weight.
    want = [[0.0, -0.5 * 2 / 2 / 2, 0.0], [0.9 / 3 / 2, 1.5 / 3 / 2, 0.0]]
    assert logprobs.grad.flatten().tolist() == pytest.approx([x for row in want for x in row])


def test_gradient_by_differences() -> None:
    torch.manual_seed(1)
    behaviour = -2 * torch.rand(3, 4, dtype=torch.float64)
    logprobs = (behaviour + 0.3 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.float64)
    advantage = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: grpo.loss(x, behaviour, advantage, mask), (logprobs,))


def test_what_lies_behind_the_end_does_not_matter() -> None:
    logprobs, behaviour = torch.tensor([[-1.0, -1e9]]), torch.tensor([[-1.0, 0.0]])
    mask, advantage = torch.tensor([[1.0, 0.0]]), torch.tensor([1.0])
    assert grpo.loss(logprobs, behaviour, advantage, mask).item() == -1.0
    assert grpo.loss(-logprobs, behaviour, advantage, 0 * mask).item() == 0.0  # no token at all
