"""What tiered verification needs before anything is loaded: a draft that suits it, and a layer mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specport.core.verify import gates
from specport.core.verify.gates import Gate
from specport.drafters.registry import AUTO
from specport.drafters.spec import DraftSpec
from specport.errors import InvalidInput
from specport.models.kinds import layer_mask
from specport.models.kinds.layer_mask import LayerMask
from specport.models.shipped import is_head, is_mtp_head
from specport.models.source import ModelFiles
from specport.outside.places import expanded


@dataclass(frozen=True)
class Tiered:
    """Hold the user's choice of tiered verification.

    verifier: folder of a layer mask; None = the one that was built last for the target.
    policy, num_draft_tokens: the paper's. The planner counts with the costs of the target's own steps.
    """

    gate: Gate
    verifier: str | Path | None = None
    policy: str = "fixed"
    num_draft_tokens: int = 5

    @property
    def note(self) -> str:
        """Return what the user is told."""
        return (
            f"lossy verification ({self.gate.name}): a slim verifier accepts tokens in place of the target, "
            "so the text may differ from the target's and may be worse"
        )

    def skipped_layers(self, files: ModelFiles) -> tuple[int, ...]:
        """Return the layers that the target's slim verifier skips.

        Raises InvalidInput where no mask was built, and ModelError for one that cannot be used or is of
        another model.
        """
        if self.verifier is not None:
            mask: LayerMask | None = layer_mask.read(expanded(self.verifier))
        else:
            mask = layer_mask.registered(files.fingerprint)
        if mask is None:
            raise InvalidInput(
                f"no slim verifier of {files.name} is known here",
                "build one with specport quantize verifier --target MODEL --out DIR, or name one with "
                "--verifier DIR",
            )
        # Also where it was found: its folder may since have been given to the mask of another model.
        mask.check_target(files.folder, files.name, files.fingerprint)
        return mask.skipped


def asked(
    verify: str, verifier: str | Path | None, draft: str, spec: DraftSpec, *, lossy: bool
) -> Tiered | None:
    """Return the choice that these arguments of `specport.load` make; None = lossless verification.

    Raises InvalidInput where they do not go together.
    """
    gate = gates.parse(verify, lossy=lossy)
    if gate is None:
        if verifier is not None:
            raise InvalidInput("a slim verifier needs --verify", "add --verify tiered:0.6,0.3 --lossy")
        return None
    if draft == AUTO or not spec.kinds:
        raise InvalidInput(
            "tiered verification needs a draft that you name: auto is lossless",
            "add --draft ngram, or --draft MODEL",
        )
    folders = [expanded(name).resolve() for name in spec.models]
    head = any(is_head(folder) or is_mtp_head(folder) for folder in folders)
    if spec.exit_layer is not None or head or "mtp" in spec.kinds:
        raise InvalidInput(
            f"the draft {str(spec)!r} reads states of the target, which tiered verification does not step on "
            "each token",
            "choose --draft ngram, suffix or a model",
        )
    return Tiered(gate, verifier)
