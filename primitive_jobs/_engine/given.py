"""`Given`: the tokens that a job has, which its worker is told ahead of the call."""

from __future__ import annotations

import _pickle as pickle
from typing import TYPE_CHECKING

from .._wire.messages import Kind
from .._wire.parcel import Parcel
from .again import AheadOfCall

if TYPE_CHECKING:
    from collections.abc import Mapping


class Given(AheadOfCall):
    """Names with the numbers of the tokens; each attempt has its own."""

    kind = Kind.GIVEN

    def __init__(self, tokens: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.notes = pickle.dumps(dict(tokens), 5)

    def parcel_for(self, *, packets: bool) -> Parcel:
        """Nothing: the notes say all."""
        del packets
        return Parcel(b"")


__all__ = ["Given"]
