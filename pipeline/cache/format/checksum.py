"""Checksums of rows, fast enough to check each row each time that it is read.

They find damage, not malice: 64 bits of plain integer arithmetic, in which any change within one word is found for
certain."""

import functools
import hashlib

import numpy as np

_STRETCH = 509  # words of 64 bits; a prime, so that pages do not lie in step with the stretches


def payload_sums(*payloads: np.ndarray) -> np.ndarray:
    """Checksums of n rows' payloads, at the speed of memory. payloads: (n, bytes) uint8 each; returns (n,) uint64.

    The 64-bit words of each stretch of 4,072 bytes are added up, and the sums, times an odd number each, added up
    again, with each payload's length. So any change within one word is found for certain, and with it any flipped bit
    or byte; pages that swap places change the sums of the stretches that they overlap."""
    total = np.zeros(len(payloads[0]), np.uint64)
    used = 0
    for payload in payloads:
        size = payload.shape[1]
        words, whole = size // 8, size // (8 * _STRETCH)
        factors = _factors(used, used + whole + 3)
        used += whole + 3
        stretches = payload[:, : whole * 8 * _STRETCH].view(np.uint64).reshape(len(payload), whole, _STRETCH)
        total += np.add.reduce(stretches, axis=2) @ factors[:whole]
        total += np.add.reduce(payload[:, whole * 8 * _STRETCH : words * 8].view(np.uint64), axis=1) * factors[whole]
        if size % 8:
            rest = np.zeros((len(payload), 8), np.uint8)
            rest[:, : size % 8] = payload[:, words * 8 :]
            total += rest.view(np.uint64)[:, 0] * factors[whole + 1]
        total += np.uint64(size) * factors[whole + 2 :]
    return _mix(total)


def payload_sum(*payloads: bytes) -> int:
    """`payload_sums` of one row."""
    return int(payload_sums(*(np.frombuffer(payload, np.uint8)[None] for payload in payloads))[0])


@functools.lru_cache
def _factors(begin: int, end: int) -> np.ndarray:
    """Odd numbers, (end - begin,) uint64, another for each place."""
    return _mix(np.arange(begin + 1, end + 1, dtype=np.uint64)) | np.uint64(1)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): spreads each bit over all 64, and can be
    inverted."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def numbers_sum(columns: list[np.ndarray], fingerprint: str) -> np.ndarray:
    """Checksum of all that is not payload, for n rows at once. columns: names (n, 16) uint8 and numbers (n,) int32.
    Returns (n,) uint64: the columns' values times an odd number each, added up and mixed."""
    total = np.zeros(len(columns[0]), np.uint64)
    factor = int.from_bytes(hashlib.blake2b(fingerprint.encode(), digest_size=8).digest(), "little")
    for column in map(np.ascontiguousarray, columns):
        for word in column.view(np.uint64).T if column.ndim == 2 else [column.astype(np.uint64)]:
            factor = (factor * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF  # Knuth's generator
            total += word * np.uint64(factor | 1) + np.uint64(factor)
    return _mix(total)
