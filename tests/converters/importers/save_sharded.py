"""One of two processes that save a sharded state dict: DIRECTORY SEED RANK RENDEZVOUS."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def main(directory: str, seed: int, rank: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    whole = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
    state = {
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": distribute_tensor(whole.bfloat16(), mesh, [Shard(1)]),
        "copied": distribute_tensor(whole, mesh, [Replicate()]),
        "few": distribute_tensor(whole[:1].clone(), mesh, [Shard(0)]),  # the second rank has none
    }
    dcp.save({"model": state}, checkpoint_id=directory)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
