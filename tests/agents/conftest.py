"""The tiny model that the tests of agents ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import specport
from specport.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    from support.tiny import tiny_agents  # needs smolagents, without which the tests are skipped

    folder = tiny_agents.write(tmp_path_factory.mktemp("tiny"))
    with specport.load(
        str(folder), draft="suffix", device="torch-cpu", policy="fixed", num_draft_tokens=4
    ) as loaded:
        yield loaded
