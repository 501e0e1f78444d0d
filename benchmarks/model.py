# SPDX-License-Identifier: Apache-2.0
"""Claim: features from the store cost a network next to nothing, and a ViT in every step many times the network.

`ditr-cache bench model` at full size (46 M parameters): a generated hall of 20,000 voxels of 2 cm, ten views of
420 x 560 pixels, D = 384 (ViT-S; random weights, on which neither time nor memory depends). The paper's table has the
two ends of it, measured with ViT-L on GPUs. The claim holds if cached DITR takes at most 1.15 of PTv3 alone.

    python benchmarks/model.py [--points 20000] [--rounds 5] [--backbone dinov2-reg-large] [--device cuda]
"""

from __future__ import annotations

import argparse
import sys

from _harness import write_results

from ditr_cache.pipelines.bench_model import ModelBench
from ditr_cache.pipelines.bench_vit import choose_vit
from ditr_cache.training.config import RunConfig, TrainConfig

TARGET = 1.15


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    cuda = args.device != "cpu"
    vit = choose_vit(args.backbone, None, None, "bf16" if cuda else "fp32", cuda=cuda)
    config = TrainConfig(run=RunConfig(device=args.device))
    report = ModelBench(config, vit, points=args.points, rounds=args.rounds).run()
    plain = report.networks["ptv3"].memory
    for name, network in report.networks.items():
        training, inference = network.training_ratio, network.inference_ratio
        print(
            f"{name:7s} training {training.median:6.2f} ({training.q1:.2f} to {training.q3:.2f}) of PTv3 alone, "
            f"inference {inference.median:6.2f} ({inference.q1:.2f} to {inference.q3:.2f})"
        )
        if network.memory is not None and plain is not None:
            print(
                f"        memory of training {network.memory.training / plain.training:.2f}, "
                f"of inference {network.memory.inference / plain.inference:.2f}"
            )
    write_results("model" if not cuda else f"model_{args.device}", report.to_dict())
    cached = report.networks["cached"]
    return 0 if max(cached.training_ratio.median, cached.inference_ratio.median) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
