"""Randomness by key: a draw depends on (seed, purpose, round, client) and on nothing else.

There is no stream and no state. `fold` hashes a key with any number of parts into a new key; `uniform`, `normal` and
`permutation` turn keys into numbers. Tensors among the parts broadcast, so one call draws for a whole cohort, and an
absent client costs nothing. Everything before the last float conversion is 64-bit integer arithmetic that wraps
around, so CPU and CUDA give the same integers and the same uniforms.

    key = keyed.fold(seed, "train", t, who)          # [k]     one key per client of round t
    u = keyed.uniform(key[:, None], torch.arange(5)) # [k, 5]  five draws for each

The hash is splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014). The permutation is the swap-or-not shuffle
(Hoang, Morris, Rogaway, CRYPTO 2012): a permutation of any size that is evaluated position by position, so drawing
one minibatch never sorts a whole data set.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

from fedsim import native

if TYPE_CHECKING:
    from torch import Tensor

    Key = int | Tensor
    Part = int | str | Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_MANY = 4096  # positions to shuffle from which our own operator is looked for
_ROUNDS = 24  # of the shuffle; what a single position keeps of its origin falls like 2^-rounds


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


@functools.lru_cache(maxsize=1024)
def _word(text: str) -> int:
    """64 bits naming a purpose, the same in every process and version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64; the masks make the arithmetic shifts logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def seed(key: int, *parts: int | str) -> int:
    """A key folded from plain ints and words, as a Python int in [0, 2^63): seeds a `torch.Generator` or numpy's."""
    value = key & _MASK
    for part in parts:
        word = _word(part) if isinstance(part, str) else part
        value = _mix_int((value + _GOLDEN * ((word & _MASK) + 1)) & _MASK)
    return value >> 1


def fold(key: Key, *parts: Part) -> Tensor:
    """A new key [...] (int64) for every combination of the parts, which broadcast; fold(fold(k, a), b) = fold(k, a, b).

    A part is an int, a word naming the purpose, or an int64 tensor. The result lives where the tensors among the
    arguments live (on the CPU when there is none).
    """
    import torch

    words = [_word(part) if isinstance(part, str) else part for part in parts]
    tensors = [word for word in (key, *words) if isinstance(word, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    value = key
    for word in words:
        if isinstance(value, int) and isinstance(word, int):  # ints fold on the host, to the same 64 bits
            value = _mix_int(((value & _MASK) + _GOLDEN * ((word & _MASK) + 1)) & _MASK)
            continue
        if isinstance(value, int):
            value = torch.full((), _signed(value), dtype=torch.int64, device=device)
        step = _signed(_GOLDEN * (word + 1)) if isinstance(word, int) else (word + 1) * _signed(_GOLDEN)
        value = _mix(value + step)
    if isinstance(value, int):
        return torch.full((), _signed(value), dtype=torch.int64, device=device)
    return value


def uniform(key: Key, *parts: Part) -> Tensor:
    """Uniform draws in [0, 1), float64, one for every combination of the parts; the same bits on CPU and CUDA."""
    import torch

    return ((fold(key, *parts) >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53


def normal(key: Key, *parts: Part) -> Tensor:
    """Standard normal draws, float64 (Box–Muller); CPU and CUDA agree to the rounding of log and cos."""
    import math

    import torch

    base = fold(key, *parts)
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(base, 0)))
    return radius * torch.cos(2.0 * math.pi * uniform(base, 1))


def walk(x: Tensor, pivot: Tensor, odd: Tensor, offset: Tensor, size: Tensor) -> None:
    """A swap-or-not shuffle of the columns of x [b, N], in place, each with its own numbers [R, N] and size [N]."""
    import torch

    for r in range(len(pivot)):
        other = pivot[r] - x
        other += (other >> 63) & size  # (pivot − x) mod size
        # the same coin for both of the pair: the top bit of a random affine map of the larger one
        coin = torch.maximum(x, other).mul_(odd[r]).add_(offset[r]).bitwise_right_shift_(63)
        x ^= other.bitwise_xor_(x).bitwise_and_(coin)


def shuffled(key: Tensor, position: Tensor, size: Tensor) -> Tensor:
    """Where position [..., b] goes under each key's [...] own permutation of 0..size-1, size [...].

    Exact: for every key the map is one-to-one on 0..size-1, whatever else is in the batch. A position outside
    0..size-1 gives a number inside it that means nothing.
    """
    import torch

    # in columns, one for each key, so that the inner loops run over all keys; in place, since this is most of planning
    lead, many = position.shape[:-1], position.shape[-1]
    size = size.broadcast_to(lead).reshape(-1)  # [N]
    parts = fold(key.broadcast_to(lead).reshape(-1), "shuffle", torch.arange(3 * _ROUNDS, device=key.device)[:, None])
    pivot = (parts[:_ROUNDS] & (2**62 - 1)) % size  # [R, N]
    odd = parts[_ROUNDS : 2 * _ROUNDS] | 1
    offset = parts[2 * _ROUNDS :]
    x = torch.minimum(position.reshape(-1, many).T, size - 1).contiguous()  # [b, N]
    operators = native.operators() if x.device.type == "cpu" and x.numel() >= _MANY else None
    if operators is not None:
        operators.shuffle.default(x, pivot, odd, offset.contiguous(), size.contiguous())
    else:
        walk(x, pivot, odd, offset, size)
    return x.T.reshape(*lead, many)


def permutation(key: Key, size: int) -> Tensor:
    """The whole permutation [size] of 0..size-1 that `shuffled` evaluates position by position."""
    import torch

    base = fold(key)
    return shuffled(base, torch.arange(size, device=base.device), torch.full_like(base, size))
