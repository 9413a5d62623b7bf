"""`BasePrimitiveJob`: the interface of a job, that of Qiskit's class of the same name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

ResultT_co = TypeVar("ResultT_co", covariant=True)
StatusT_co = TypeVar("StatusT_co", covariant=True)


class BasePrimitiveJob(ABC, Generic[ResultT_co, StatusT_co]):
    """The interface of ``qiskit.primitives.BasePrimitiveJob``: eight methods and ``metadata``."""

    __slots__ = ()

    metadata: dict[str, Any]

    @abstractmethod
    def job_id(self) -> str:
        """Return a unique id."""

    @abstractmethod
    def result(self) -> ResultT_co:
        """Return the result, waiting for it."""

    @abstractmethod
    def status(self) -> StatusT_co:
        """Return the status now."""

    @abstractmethod
    def done(self) -> bool:
        """Return whether it ended with a result."""

    @abstractmethod
    def running(self) -> bool:
        """Return whether it is running."""

    @abstractmethod
    def cancelled(self) -> bool:
        """Return whether it was cancelled."""

    @abstractmethod
    def in_final_state(self) -> bool:
        """Return whether it ended, however."""

    @abstractmethod
    def cancel(self) -> bool:
        """Try to cancel it; return whether it is cancelled."""
