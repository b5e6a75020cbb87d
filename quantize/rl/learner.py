"""The trained copy of the target: full weights in float32, their optimizer, and one update a step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from specport.quantize.convert import package_faults, whole_model
from specport.quantize.rl import grpo
from specport.quantize.rl.rollouts import Rollout
from specport.quantize.train.trainer import Run

if TYPE_CHECKING:
    from torch import Tensor

_BETAS, _MOST_GRADIENT = (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Update:
    """Hold what an update was made of.

    loss:     before the update.
    gradient: its norm, before it was clipped to 1.
    gap, most_gap: mean and largest difference between the log-probabilities of the engine and those of the
              learner, over the tokens of the samples that were computed.
    """

    loss: float
    gradient: float
    gap: float
    most_gap: float


class Learner:
    """Train a copy of the target with GRPO.

    folder: Hugging Face folder of the target.
    mixed:  whether matrix products run in bf16. The weights are float32 anyway.
    clip:   of the ratio (`grpo.loss`). The behaviour is that of the engine, by its log-probabilities.
    """

    def __init__(
        self, folder: Path, *, learning_rate: float, mixed: bool, device: str = "cpu", clip: float = grpo.CLIP
    ) -> None:
        package_faults.mend()
        from transformers import AutoModelForCausalLM

        # `eval`: a dropout would train another model than the one that wrote the rollouts.
        self.model = whole_model.read(AutoModelForCausalLM, folder, dtype=torch.float32).eval()
        self.model.to(device)
        self._device, self._mixed, self._clip = device, mixed, clip
        self._rate = learning_rate
        self.num_updates = 0  # that were begun, those that changed nothing included
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=learning_rate, betas=_BETAS, weight_decay=0.0)
        for parameter in self._trained:  # as its first step would: a checkpoint may come before that
            self._optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def weights(self) -> Mapping[str, Any]:
        """Return the present weights by name, for `Pipeline.update_weights`."""
        found: Mapping[str, Any] = self.model.state_dict()
        return found

    def run(self, path: Path, *facts: str) -> Run:
        """Return the state of a training that is kept at `path`. facts: decide what the training is."""
        digest = hashlib.sha256(repr((facts, self._rate, self._clip, self._mixed)).encode())
        return Run(digest.hexdigest()[:24], path, self._trained, self._optimizer)

    def logprobs(self, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities [rollouts, tokens] of the rollouts' tokens, and the mask of them."""
        ids = [[*r.prompt, *r.tokens] for r in rollouts]
        first = min(len(r.prompt) for r in rollouts) - 1  # the first place whose logits are used
        longest = max(map(len, ids))
        padded = torch.zeros((len(ids), longest), dtype=torch.long)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens)
        lengths = torch.tensor([len(tokens) for tokens in ids])
        seen = (torch.arange(longest)[None] < lengths[:, None]).long()
        with torch.autocast(torch.device(self._device).type, torch.bfloat16, enabled=self._mixed):
            logits = self.model(
                input_ids=padded.to(self._device),
                attention_mask=seen.to(self._device),
                use_cache=False,
                logits_to_keep=longest - first,
            ).logits[:, :-1]
        own = logits.gather(2, padded[:, first + 1 :, None].to(self._device))[:, :, 0].float()
        found = own - logits.float().logsumexp(dim=2)
        # The tokens of each rollout, from its own start on.
        most = max(len(r.tokens) for r in rollouts)
        starts = torch.tensor([len(r.prompt) - 1 - first for r in rollouts])
        counts = torch.tensor([len(r.tokens) for r in rollouts])
        mask = (torch.arange(most)[None] < counts[:, None]).float().to(self._device)
        where = (starts[:, None] + torch.arange(most)).clamp(max=found.shape[1] - 1)
        return found.gather(1, where.to(self._device)), mask

    def update(self, rollouts: Sequence[Rollout], rewards: Sequence[Sequence[float]]) -> Update:
        """Take one step. rewards: of the samples of each prompt, in the order of the rollouts.

        Samples of a prompt whose rewards are all equal have no part in the gradient, and are not computed.
        Where that is so for all prompts, nothing changes.
        """
        advantage = grpo.advantages(torch.tensor(rewards, dtype=torch.float32)).flatten()
        used = advantage.nonzero()[:, 0].tolist()
        share, learns = len(used) / len(rollouts), bool(used)
        used = used or [*range(len(rewards[0]))]  # for the gap only
        rollouts = [rollouts[i] for i in used]
        with torch.set_grad_enabled(learns):
            logprobs, mask = self.logprobs(rollouts)
        behaviour = torch.zeros_like(mask)
        for row, rollout in enumerate(rollouts):
            behaviour[row, : len(rollout.tokens)] = torch.tensor(rollout.logprobs)
        gaps = (logprobs.detach() - behaviour).abs()[mask > 0]
        gap, most_gap = float(gaps.mean()), float(gaps.max())
        if not learns:
            self.num_updates += 1
            return Update(0.0, 0.0, gap, most_gap)
        # A mean over all samples, of which the others would add 0.
        loss = share * grpo.loss(logprobs, behaviour, advantage[used].to(self._device), mask, self._clip)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, _MOST_GRADIENT)
        self.num_updates += 1  # first: an update that Ctrl-C cuts short has changed some weights
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(float(loss.detach()), float(norm), gap, most_gap)
