"""Everything the engine raises, or puts in a failed item's place."""
# ruff: noqa: N818 - they are answers to a caller, and read better without "Error"


class EngineError(Exception):
    """Base of all engine errors. Messages are written for the caller and name nothing internal."""


class InvalidInput(EngineError):
    """The caller's fault. `field` is the path as the proto names it, e.g. `texts[3]`."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class Overloaded(EngineError):
    """Too much waits before the request; nothing of it was computed, unless it is a part of a large one.

    Another replica may have room. `retry_after_s` estimates when this one has.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class DeadlineTooShort(EngineError):
    """The request's own work takes longer than its caller waits: no replica could finish it in time."""

    def __init__(self) -> None:
        super().__init__("cannot finish before the deadline")


class Draining(EngineError):
    """The engine is closing and takes no new work."""

    def __init__(self) -> None:
        super().__init__("shutting down")


class OutOfMemory(EngineError):
    """Device memory was exhausted, even after the batch was split and tried again."""

    def __init__(self) -> None:
        super().__init__("out of device memory; send shorter texts")


class NonFinite(EngineError):
    """The model's output for this item is NaN or infinite."""

    def __init__(self) -> None:
        super().__init__("the model's output is not finite")


class ModelBroken(EngineError):
    """The device is in a state no further call can recover from; the process should end."""

    def __init__(self, cause: BaseException | str) -> None:
        super().__init__("the device failed")
        self.cause = cause


class CheckpointError(EngineError):
    """The checkpoint cannot be served; the message names the file, tensor or setting at fault."""
