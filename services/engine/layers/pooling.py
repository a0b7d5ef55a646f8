"""Which of a text's final hidden states count, and how they become one."""

import enum

import torch


class Pooling(enum.Enum):
    """What makes one state of a text's many."""

    FIRST = "first token"
    LAST = "last token"
    MEAN = "mean of all tokens"


def pool(hidden: torch.Tensor, starts: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """hidden: fp32 `[W, hidden]`, the wanted rows; starts: `[E + 1]`, where each text's begin, then W.

    → fp32 `[E, hidden]`.
    """
    if pooling is not Pooling.MEAN:
        return hidden  # the one row of each text
    # unsafe: its checks of `starts` would make the host wait for the device.
    pooled: torch.Tensor = torch.segment_reduce(hidden, "mean", offsets=starts, axis=0, unsafe=True)
    return pooled
