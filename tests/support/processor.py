"""What of the processor that tests run on has to be known to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from specport.errors import DeviceError
from specport.runtime.devices.profiles import cpu_flags

# No AVX-512, hence no VNNI: in steps of a fixed shape OpenVINO then rounds a token by its place in the step,
# and its products of 8-bit weights with 8-bit activations can saturate.
NARROW = bool(cpu_flags()) and "avx512f" not in cpu_flags()  # no flags: not known


@contextmanager
def exact_mode() -> Iterator[None]:
    """Skip a test where there can be no exact mode, if that is what the loader says."""
    try:
        yield
    except DeviceError as error:
        if not NARROW or "no exact mode" not in error.message:
            raise
        pytest.skip(f"{error.message} (a processor without AVX-512)")
