"""One model for all of an answer, also while a rollout exchanges the workers and two models answer by turns."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from gateway.lru import Sized
from gateway.memo import Answer
from gateway.workers import Model, Pool
from services.runtime.errors import UpstreamUnavailable
from winnow.common.v1 import common_pb2

M = TypeVar("M", bound=Model)
E = TypeVar("E", bound=Sized)

_ATTEMPTS = 4


class WrongModelError(Exception):
    """The workers have another model than the one that was asked for."""

    def __init__(self, serving: common_pb2.ModelIdentity) -> None:
        super().__init__()
        self.serving = serving


async def of_one_model(
    pool: Pool[M],
    answer: Callable[[M], Awaitable[Sequence[Answer[E]]]],
    deadline: float | None,
    fingerprint: str | None = None,
) -> tuple[M, Sequence[Answer[E]]]:
    """What `answer(model)` gives for a model that then turns out to have answered all of it, and that model.

    With a `fingerprint`, for the model of that name: WrongModelError where the workers have another.
    """
    for _ in range(_ATTEMPTS):
        model = await (pool.model(deadline) if fingerprint is None else _named(pool, fingerprint, deadline))
        answers = await answer(model)
        seen = {one.model.fingerprint: one.model for one in answers}
        if set(seen) == {model.model.fingerprint}:
            return model, answers
        # The workers have changed their model. What it computed is kept under its own name.
        other = next(identity for print_, identity in seen.items() if print_ != model.model.fingerprint)
        serving = await pool.model_of(other, deadline)
        if fingerprint is None and len(seen) == 1:
            return serving, answers
    if fingerprint is not None:
        raise WrongModelError((await pool.model(deadline)).model)
    raise UpstreamUnavailable(pool.what, "is changing its model")


async def _named(pool: Pool[M], fingerprint: str, deadline: float | None) -> M:
    model = await pool.serving(fingerprint, deadline)
    if model is None:
        raise WrongModelError((await pool.model(deadline)).model)
    return model
