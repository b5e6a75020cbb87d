"""Bounded numbers, as types of the entries of outside files."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Layer = Annotated[int, Meta(ge=0, lt=1 << 16)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 24)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0, lt=1e12)]
Positive = Annotated[float, Meta(gt=1e-12, lt=1e12)]
