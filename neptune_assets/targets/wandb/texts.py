"""Numbers as the texts and bytes that a history holds, many at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.layout import format_step
from neptune_assets.targets.wandb.columns import Ints


def float_texts(values: Any) -> Any:
    """Return floats as JSON texts that read back to the same bits; NaN and infinities in W&B's words."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    numbers = values.to_numpy(zero_copy_only=False)
    texts = values.cast(pa.string())
    odd = ~np.isfinite(numbers) | ((numbers == 0) & np.signbit(numbers))
    if odd.any():
        spelled = [
            "NaN" if value != value else "-0.0" if value == 0 else "Infinity" if value > 0 else "-Infinity"
            for value in numbers[odd].tolist()
        ]
        texts = pc.replace_with_mask(texts, pa.array(odd), pa.array(spelled, pa.string()))
    return texts


def step_text(microsteps: int) -> str:
    """Return a step as the shortest exact decimal."""
    return format_step(microsteps).rstrip("0").rstrip(".")


def seconds_text(milliseconds: int) -> str:
    """Return milliseconds as seconds with three places."""
    sign = "-" if milliseconds < 0 else ""
    whole, rest = divmod(abs(milliseconds), 1000)
    return f"{sign}{whole}.{rest:03d}"


def decimal_texts(numbers: Ints, places: int, *, shortest: bool = False) -> Any:
    """Return whole numbers divided by a power of ten, exactly; ``shortest`` leaves out zeros at the end."""
    positive = np.abs(numbers)
    whole = pa.array(positive // 10**places).cast(pa.large_string())
    rest = pc.utf8_lpad(pa.array(positive % 10**places).cast(pa.large_string()), places, "0")
    signs = pa.array(["", "-"], pa.large_string()).take(pa.array((numbers < 0).astype(np.int8)))
    point: Any = pa.scalar(".", pa.large_string())
    if shortest:
        rest = pc.utf8_rtrim(rest, "0")
        dots = pc.greater(pc.binary_length(rest), 0).cast(pa.int8())
        point = pa.array(["", "."], pa.large_string()).take(dots)
    return pc.binary_join_element_wise(signs, whole, point, rest, pa.scalar("", pa.large_string()))


def varints(numbers: Ints) -> Any:
    """Return numbers from 0 on in protobuf's variable-length form, as an array of binaries."""
    sizes = np.ones(len(numbers), dtype=np.int64)
    for place in range(1, 9):
        sizes += numbers >= 1 << 7 * place
    width = np.arange(int(sizes.max(initial=1)))
    digits = numbers[:, None] >> 7 * width & 0x7F | np.where(width < sizes[:, None] - 1, 0x80, 0)
    flat = digits.astype(np.uint8)[width < sizes[:, None]]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    return pa.Array.from_buffers(pa.large_binary(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(flat)])
