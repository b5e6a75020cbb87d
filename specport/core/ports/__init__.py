"""The ports of the core: interfaces of model, drafter and policy, and the plain data that they exchange."""

from specport.core.arrays import Array
from specport.core.block import Block
from specport.core.ports.checked import CachedSequence, CheckedModel
from specport.core.ports.conditioned import conditioned
from specport.core.ports.counts import DrafterCounts, DraftingCounts, TierCounts
from specport.core.ports.drafter import (
    Drafter,
    DraftRequest,
    Needs,
    Outcome,
    PlannedDrafter,
    Prefilled,
)
from specport.core.ports.hidden_head import HeadChains, HiddenHead
from specport.core.ports.model import (
    HEAD_INPUT,
    CacheHandle,
    Capabilities,
    Chains,
    EarlyExit,
    GreedyChain,
    HeadRows,
    Model,
    Refusal,
    Row,
    StepOutput,
    Wanted,
)
from specport.core.ports.plan import Drafted, Plan, StopRule
from specport.core.ports.policy import Policy
from specport.core.ports.prefix_blocks import KeptBlock, PrefixBlocks
from specport.core.ports.weight_updates import WeightUpdates

__all__ = [
    "HEAD_INPUT",
    "Array",
    "Block",
    "CacheHandle",
    "CachedSequence",
    "Capabilities",
    "Chains",
    "CheckedModel",
    "DraftRequest",
    "Drafted",
    "Drafter",
    "DrafterCounts",
    "DraftingCounts",
    "EarlyExit",
    "GreedyChain",
    "HeadChains",
    "HeadRows",
    "HiddenHead",
    "KeptBlock",
    "Model",
    "Needs",
    "Outcome",
    "Plan",
    "PlannedDrafter",
    "Policy",
    "Prefilled",
    "PrefixBlocks",
    "Refusal",
    "Row",
    "StepOutput",
    "StopRule",
    "TierCounts",
    "Wanted",
    "WeightUpdates",
    "conditioned",
]
