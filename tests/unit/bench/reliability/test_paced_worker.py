import time

import numpy as np
import pytest

from bench.reliability.paced_worker import PacedModel
from services.engine.devices.cpu import Cpu
from services.engine.types import Ids


def texts(count: int) -> list[Ids]:
    random = np.random.default_rng(5)
    shared = random.integers(0, 100, 20, np.int32)
    return [np.concatenate([shared, random.integers(0, 100, 7 + number, np.int32)]) for number in range(count)]


def test_a_text_has_the_same_result_in_every_batch_and_no_other_text_has_it() -> None:
    device = Cpu(PacedModel(100, 32, 1e9), lambda hidden: hidden)
    many = texts(6)
    together = device.launch(device.pack(many))()
    for text, row in zip(many, together, strict=True):
        assert np.allclose(device.launch(device.pack([text]))()[0], row, atol=1e-5)
    distances = np.abs(together[:, None] - together[None]).max(axis=2)
    assert distances[~np.eye(6, dtype=bool)].min() > 0.1


def test_a_batch_takes_the_time_of_its_tokens() -> None:
    device = Cpu(PacedModel(100, 32, 100.0), lambda hidden: hidden)
    packed = device.pack(texts(1))
    begun = time.perf_counter()
    device.launch(packed)()
    assert time.perf_counter() - begun >= len(packed.ids) / 100 == pytest.approx(0.27)
