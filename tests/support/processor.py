"""What of the processor that tests run on has to be known to them."""

from __future__ import annotations

from specport.runtime.profiles import cpu_flags

# No AVX-512, hence no VNNI: in steps of a fixed shape OpenVINO then rounds a token by its place in the step,
# and its products of 8-bit weights with 8-bit activations can saturate.
NARROW = bool(cpu_flags()) and "avx512f" not in cpu_flags()  # no flags: not known
