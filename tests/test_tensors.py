"""torch's tensors as arguments and results, and torch's generator in pools with a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from helpers import PATIENCE, meet

import primitive_jobs.joblib
from primitive_jobs import JobPool, share
from primitive_jobs._engine import repeated
from primitive_jobs._wire import pickling, rng_states
from primitive_jobs._wire.copies import LEAST

torch: Any = pytest.importorskip("torch")

LARGE = pickling.OUT_OF_BAND  # bytes and more
# What torch says of its own classes while it unpickles some of its own tensors.
pytestmark = pytest.mark.filterwarnings(
    "ignore:TypedStorage is deprecated", "ignore:.*quantized tensor creation functions"
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobPool]:
    """A pool of two that both run already."""
    with JobPool(2, idle_timeout=None, spare_workers=0, preload=("torch",)) as pool:
        folder = tmp_path_factory.mktemp("meeting")
        jobs = [pool.submit(meet, folder, 2) for _ in range(2)]
        assert len({job.result(4 * PATIENCE) for job in jobs}) == 2
        yield pool


def travelled(value: Any) -> tuple[Any, list[int]]:
    """What arrives, and the bytes of what was not in the pickle."""
    body, buffers = pickling.dumps(value)
    assert len(body) < LARGE
    copies = [memoryview(bytearray(buffer)) for buffer in buffers]
    return pickling.loads(body, copies), [buffer.nbytes for buffer in buffers]


def numbers(count: int = LARGE) -> Any:
    return torch.arange(float(count))


KINDS: dict[str, tuple[Callable[[], Any], int]] = {
    "contiguous": (numbers, 4 * LARGE),
    "strided": (lambda: numbers()[::2], 4 * LARGE),
    "transposed": (lambda: numbers().view(2, -1).T, 4 * LARGE),
    "part": (lambda: numbers()[5:9], 4 * LARGE),
    "bfloat16": (lambda: numbers().to(torch.bfloat16), 2 * LARGE),
    "bool": (lambda: numbers() > 5, LARGE),
    "complex": (lambda: numbers().to(torch.complex64).conj(), 8 * LARGE),
    "from numpy": (lambda: torch.from_numpy(np.arange(LARGE)), 8 * LARGE),
    "small": (lambda: numbers(5), 0),
    "empty": (lambda: torch.empty(0, 3), 0),
    "scalar": (lambda: torch.tensor(7), 0),
    "with gradient": (lambda: numbers().requires_grad_(), 4 * LARGE),
    "parameter": (lambda: torch.nn.Parameter(numbers()), 4 * LARGE),
    "in shared memory": (lambda: numbers().share_memory_(), 4 * LARGE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_arrives_and_its_memory_is_not_in_the_pickle(kind: str) -> None:
    make, size = KINDS[kind]
    tensor = make()
    found, sizes = travelled(tensor)
    assert sizes == ([size] if size else [])
    assert type(found) is type(tensor)
    assert (found.dtype, found.shape, found.stride()) == (
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
    )
    assert found.requires_grad == tensor.requires_grad
    assert torch.equal(found, tensor)
    before = tensor.detach().clone()
    with torch.no_grad():
        found.fill_(1)
    assert torch.equal(tensor, before)


def test_others_travel_in_torchs_own_way() -> None:
    sparse = torch.eye(200).to_sparse()
    assert torch.equal(travelled(sparse)[0].to_dense(), sparse.to_dense())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(numbers(), 0.1, 0, torch.quint8)
        found, _ = travelled(quantized)
    assert torch.equal(found.dequantize(), quantized.dequantize())
    assert travelled(torch.ones(2, device="meta"))[0].is_meta


def test_what_shares_memory_does_so_afterwards(pool: JobPool) -> None:
    tensor = numbers()
    for large in (tensor, tensor[:7].clone()):
        (one, other), sizes = travelled((large, large[1:5]))
        assert len(sizes) <= 1
        one[1] = -1
        assert other[0] == -1
        assert large[1] == 1

    def make() -> Any:
        tensor = numbers()
        return tensor, tensor[1:]

    found, view = pool.submit(make).result(PATIENCE)
    found[1] = -1
    assert view[0] == -1


def test_modules_and_their_optimizers() -> None:
    module = torch.nn.Linear(200, 200)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    (found, other), sizes = travelled((module, optimizer))
    assert sizes == [4 * 200 * 200]
    assert other.param_groups[0]["params"][0] is found.weight
    found(torch.ones(200)).sum().backward()
    other.step()
    assert not torch.equal(found.weight, module.weight)
    state, sizes = travelled(module.state_dict())
    assert sizes == [4 * 200 * 200]
    assert torch.equal(state["weight"], module.weight)


def test_a_job_has_it_for_itself_and_returns_it(pool: JobPool) -> None:
    def change(tensor: Any) -> Any:
        tensor += 1
        return tensor

    tensor = numbers(1 << 20)
    found = pool.submit(change, tensor).result(PATIENCE)
    assert torch.equal(found, numbers(1 << 20) + 1)
    assert torch.equal(tensor, numbers(1 << 20))
    assert torch.equal(found.add_(1), tensor + 2)
    results = list(pool.map(change, [tensor] * 3, chunksize=3))
    assert all(torch.equal(each, tensor + 1) for each in results)


def test_a_job_that_writes_to_shared_data_changes_its_own(pool: JobPool) -> None:
    """Torch has no tensor that cannot be written to."""

    def change(tensor: Any) -> float:
        tensor[0] += 1
        return float(tensor[0])

    shared = share(numbers())
    assert [pool.submit(change, shared).result(PATIENCE) for _ in range(6)] == [1.0] * 6


def test_joblibs_tasks_are_sent_it_once(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(repeated.Repeated):
        def __init__(self, buffer: memoryview, owner: Any) -> None:
            super().__init__(buffer, owner)
            made.append(buffer.nbytes)

    def change(tensor: Any, place: int) -> float:
        tensor[place] += 1
        return float(tensor[: place + 1].sum())

    monkeypatch.setattr(repeated, "Repeated", Counted)
    primitive_jobs.joblib.register()
    tensor = torch.zeros(LEAST)
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        tasks = (joblib.delayed(change)(tensor, i) for i in range(20))
        assert joblib.Parallel(batch_size=2)(tasks) == [1.0] * 20
    assert made == [4 * LEAST]


# --- seeds ----------------------------------------------------------------------------------------


def draw() -> float:
    import torch

    return float(torch.rand(()))


@pytest.mark.parametrize("preload", [(), ("torch",)])
def test_what_a_job_draws_follows_from_the_seed(preload: tuple[str, ...]) -> None:
    def run(seed: int) -> list[float]:
        with JobPool(2, seed=seed, preload=preload, spare_workers=0) as pool:
            jobs = [pool.submit(draw) for _ in range(6)]
            return [job.result(4 * PATIENCE) for job in jobs]

    first = run(1)
    assert len(set(first)) == 6
    assert run(1) == first
    assert not {*run(2)} & {*first}


def test_a_job_that_goes_on_draws_what_comes_next() -> None:
    draw()
    saved = rng_states.save()
    expected = [draw(), draw()]
    rng_states.restore(saved)
    assert [draw(), draw()] == expected
