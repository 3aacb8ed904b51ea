"""Predicts a decode step on a GPU from the bytes it must read: P1's 1.6B shapes against a mixture of experts.

    python benchmarks/roofline.py [--bandwidth 3.35e12] [--memory 80e9]

Nothing is measured here. A step reads: the dense weights once; each sequence's cache; and of every memory layer the
query projection, the keys, W_o (E*D*d, once a batch) and K rows of D numbers a token. The paired mixture of experts
activates 2 of 34 experts a token and has the same parameters, 21.41e9: B tokens touch 34*(1 - (1 - 2/34)^B) experts.
"""

from __future__ import annotations

import click

BYTES = 2  # bfloat16
HIDDEN, BLOCKS_OF_MODEL, ACTIVE, TOTAL = 2048, 32, 1.6e9, 21.41e9
MEMORY_LAYERS, TAKEN, KEYS, KEY_WIDTH, WIDTH, VIRTUAL, HEADS, RANK = 6, 84, 2 * 1792, 512, 1024, 4, 2, 2
EXPERTS, CHOSEN = 34, 2


def memory_bytes(batch: int) -> float:
    """What all memory layers read in a step."""
    query = 2 * KEY_WIDTH * HIDDEN
    keys = 2 * HEADS * RANK * KEYS * KEY_WIDTH
    projection = VIRTUAL * WIDTH * HIDDEN
    return MEMORY_LAYERS * BYTES * (query + keys + projection + batch * TAKEN * WIDTH)


def expert_bytes(batch: int) -> float:
    """What the experts' layers read in a step: every expert that some token of the batch chose."""
    experts = (TOTAL - ACTIVE) / (1 - CHOSEN / EXPERTS)
    return BYTES * experts * (1 - (1 - CHOSEN / EXPERTS) ** batch)


def cache_bytes(batch: int, length: int) -> float:
    """Keys and values of every sequence, one head a query head."""
    return batch * length * 2 * BLOCKS_OF_MODEL * HIDDEN * BYTES


@click.command()
@click.option("--bandwidth", default=3.35e12, show_default=True, help="Bytes a second; the default is an H100's.")
@click.option("--memory", default=80e9, show_default=True, help="Bytes; points that need more than 80% are left out.")
def main(bandwidth: float, memory: float) -> None:
    """Print the prediction as a table."""
    skipped = []
    shared = BYTES * (TOTAL - (TOTAL - ACTIVE) / (1 - CHOSEN / EXPERTS))
    print("| batch | KV | memory layers, MB | their time, us | step, ms | experts' step, ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for length in (64, 256, 2048):
        for batch in (1, 8, 64, 512, 4096):
            sparse, cache = memory_bytes(batch), cache_bytes(batch, length)
            if BYTES * TOTAL + cache > 0.8 * memory:
                skipped.append(f"batch {batch}, KV {length}: {(BYTES * TOTAL + cache) / 1e9:.0f} GB")
                continue
            step = (BYTES * ACTIVE + sparse + cache) / bandwidth
            other = (shared + expert_bytes(batch) + cache) / bandwidth
            print(
                f"| {batch} | {length} | {sparse / 1e6:.0f} | {sparse / bandwidth * 1e6:.0f} | {step * 1e3:.2f} | "
                f"{other * 1e3:.2f} | {other / step:.1f}x |"
            )
    if skipped:
        print("\nMore than 80% of the memory: " + "; ".join(skipped) + ".")


if __name__ == "__main__":
    main()
