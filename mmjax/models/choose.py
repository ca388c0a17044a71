"""Which implementation of attention computes a block: what each computes exactly, and where.

Everything here is static, so that `mmjax plan` can tell what a program will do without making one.
"""

from __future__ import annotations

from typing import NamedTuple

from mmjax.typing import General, InOrder, OneSegment

TILE = 128  # lanes of a TPU
SHORT = 512  # tokens of a row that our kernel takes as one block
WIDEST = 256  # head of our kernel
KERNELS = {"tpu": ("splash", "pallas"), "gpu": ("cudnn",), "cpu": ()}


class Asked(NamedTuple):
    """What a call of attention is about.

    Fields:
      num_queries, num_keys: tokens of a row. num_heads, kv_heads, head_width. dtype: by name.
      causal, isolate: of the block. query_rule, key_rule: of the views (`Tokens.rule`).
    """

    num_queries: int
    num_keys: int
    num_heads: int
    kv_heads: int
    head_width: int
    dtype: str = "bfloat16"
    causal: bool = False
    isolate: bool = False
    query_rule: General | OneSegment | InOrder = General()
    key_rule: General | OneSegment | InOrder = General()


def chosen(implementation: str, platform: str, asked: Asked) -> str:
    """Name of the implementation that computes it: what is asked for where that is exact, else
    `chunked`; for `auto` the first of the platform that is exact and suits the shape."""
    if implementation != "auto":
        return "chunked" if refusal(implementation, platform, asked) else implementation
    for name in KERNELS[platform]:
        if not refusal(name, platform, asked) and (name != "splash" or _suits_splash(asked)):
            return name
    return "chunked"


def refusal(implementation: str, platform: str, asked: Asked) -> str:
    """Why an implementation does not compute it; empty when it does. On CPU the kernels for TPU
    are interpreted, which is exact and slow."""
    if implementation in ("chunked", "full"):
        return ""
    if implementation == "cudnn":
        return _cudnn_refuses(platform, asked)
    if platform == "gpu":
        return "it is a kernel for TPU"
    if implementation == "pallas":
        if asked.head_width > WIDEST:
            return f"heads of {asked.head_width} are wider than {WIDEST}"
        return ""
    if asked.causal and not _in_slot_order(asked):
        return "it knows causal order by slots alone, and the layout promises no such order"
    return ""


def _suits_splash(asked: Asked) -> bool:
    """Splash wants [heads, tokens, width], where a head that is no whole tile is padded to one, and
    reads each head of a short row by itself: `pallas` then needs less memory and fewer cycles."""
    long = max(asked.num_queries, asked.num_keys) > SHORT
    return long and asked.head_width % TILE == 0


def _in_slot_order(asked: Asked) -> bool:
    same = asked.num_queries == asked.num_keys
    return same and isinstance(asked.query_rule, InOrder) and isinstance(asked.key_rule, InOrder)


def _cudnn_refuses(platform: str, asked: Asked) -> str:
    if platform != "gpu":
        return "it is a kernel for NVIDIA GPUs"
    if asked.dtype not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, not {asked.dtype}"
    if asked.head_width % 8 or asked.head_width > TILE:
        return f"heads of {asked.head_width} are no multiple of 8 up to {TILE}"
    if asked.isolate:
        return "it cannot keep streams apart"
    if isinstance(asked.query_rule, General) or isinstance(asked.key_rule, General):
        return "it knows rows by their lengths, and the layout promises no single segment"
    if asked.causal and not _in_slot_order(asked):
        return "it knows causal order by slots alone, and the layout promises no such order"
    return ""
