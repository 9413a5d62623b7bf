"""`Again`: what a worker is sent ahead of a call that others have made before, in part."""

from __future__ import annotations

import _pickle as pickle
from typing import TYPE_CHECKING

from .._wire.messages import AGAIN, Kind
from .._wire.parcel import Parcel
from .sources import Source

if TYPE_CHECKING:
    from .._wire.present import About
    from ..insight.salvage import Checkpoint


class AheadOfCall(Source):
    """What one attempt alone is sent ahead."""

    def with_call(self, payload: bytes | Parcel | None) -> Parcel:
        """Return a call with this ahead of it, in the place of an earlier one."""
        if not isinstance(payload, Parcel):
            payload = Parcel.of_packed(payload or b"", 0)
        others = [source for source in payload.refers_to if type(source) is not type(self)]
        payload.refers_to = (*others, self)
        return payload


class Again(AheadOfCall):
    """How many attempts it is, and the last checkpoint.

    Args:
        tries: How many attempts of the job there are with the next one.
        checkpoint: What the job goes on from; None: it begins anew.
        about: What the job is told of itself; None: what its call says.
    """

    kind = Kind.AGAIN

    @classmethod
    def after(cls, payload: bytes | Parcel | None, tries: int, keeps: Checkpoint | None) -> Again:
        """Return that of one more attempt with a payload, which may be another job's."""
        others = payload.refers_to if isinstance(payload, Parcel) else ()
        before = next((source for source in others if isinstance(source, Again)), None)
        return cls(tries, keeps, None if before is None else before.about)

    def __init__(
        self, tries: int, checkpoint: Checkpoint | None, about: About | None = None
    ) -> None:
        super().__init__()
        self.about = about
        self._checkpoint = checkpoint
        call = 0 if checkpoint is None else checkpoint.call
        self.notes = AGAIN.pack(tries, call, checkpoint is not None)
        if about is not None:
            self.notes += pickle.dumps(about, 5)

    def parcel_for(self, *, packets: bool) -> Parcel:
        """A parcel of its own for each worker that it is sent to."""
        if self._checkpoint is None:
            return Parcel(b"")
        if packets:
            return self._checkpoint.parcel()
        return Parcel.of_packed(self._checkpoint.to_bytes(), self._checkpoint.buffers)


__all__ = ["Again", "AheadOfCall"]
