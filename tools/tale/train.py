"""Train tale on one GPU, while other processes write its text.

Run: `python -m tools.tale.train --out OUT --seconds 480`. The first steps measure the speed; from it the number of steps is
set so that the time is kept (`--steps` fixes it instead, and makes a run repeatable up to the GPU's rounding). Matrices of
the layers are trained by Muon (orthogonalised momentum), embedding and norms by AdamW; the rate is constant after a short
warm-up and falls linearly to zero over the last part.

Writes model.safetensors, config.json, loss.csv and training.json into OUT.
Source of Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import queue
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.tale import data
from tools.tale.model import Shape, Tale, document_blocks, document_mask, hf_config

logger = logging.getLogger(__name__)

WARMUP_STEPS = 100
TIMED_STEPS = (25, 65)  # the speed is measured between these; their shards lie before data.FIRST_SHARDS
DECAY_SHARE = 0.5
ADAM_RATE = 4e-3
MUON_RATE = 0.02
MUON_MOMENTUM = 0.95
WEIGHT_DECAY = 0.02


def orthogonalise(matrices: Tensor) -> Tensor:
    """Move the singular values of each matrix near 1 by five Newton-Schulz steps; matrices [N, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic of the source, steep at zero
    x = matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon:
    """Momentum, then orthogonalised steps, for matrices grouped by shape."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(shapes.values())
        self.momenta = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply and clear the gradients."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradients = torch.stack([p.grad for p in group if p.grad is not None])
            momentum.lerp_(gradients, 1 - MUON_MOMENTUM)
            update = orthogonalise(gradients.lerp(momentum, MUON_MOMENTUM)).float()
            scale = rate * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * WEIGHT_DECAY)
            torch._foreach_add_(group, list(update.unbind()), alpha=-scale)
            for parameter in group:
                parameter.grad = None


def rate_at(step: int, progress: float) -> float:
    """Share of the full learning rate at a step; `progress` runs from 0 to 1 over the training."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return max(0.0, min(1.0, (1.0 - progress) / DECAY_SHARE))


def batches(folder: Path, rows: int, device: torch.device, total: list[int]) -> queue.Queue[Tensor]:
    """Rows on the device, [3, rows, ROW] int32, read ahead by a thread until `total[0]` shards are read."""
    ready: queue.Queue[Tensor] = queue.Queue(maxsize=6)

    def read() -> None:
        index = 0
        while index < total[0]:
            try:
                shard = torch.from_numpy(
                    data.read_shard(folder, index, patience_s=30.0 if index else 120.0).astype("int32")
                )
            except TimeoutError as error:
                logger.warning("%s", error)
                index += 1
                continue
            for first in range(0, data.ROWS_PER_SHARD, rows):
                part = shard[:, first : first + rows].contiguous()
                ready.put(part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part)
            index += 1

    threading.Thread(target=read, daemon=True).start()
    return ready


def shifted(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, targets and weights: position t predicts token t + 1 of its own document."""
    ids, weights, documents = batch.unbind()
    targets = torch.roll(ids, -1, dims=1)
    same = documents == torch.roll(documents, -1, dims=1)
    same[:, -1] = False
    wanted = torch.where(same & (documents != data.PADDING), torch.roll(weights, -1, dims=1), 0)
    return ids, targets.long(), wanted.float() / 10


def train(arguments: argparse.Namespace) -> None:
    """The whole run."""
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    folder = Path(mkdtemp(dir="/dev/shm"))
    writers = data.start_writers(folder, arguments.model / "tokenizer.json", arguments.seed, arguments.processes)
    shape = Shape(num_layers=arguments.layers)
    model = Tale(shape).to(device)
    if arguments.start:
        model.load_hf(load_file(arguments.start))
    logger.info("parameters: %d", sum(p.numel() for p in model.parameters()))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda")
    cos, sin = model.rotary(data.ROW, device)

    def loss_of(batch: Tensor, blocks: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ids, targets, weights = shifted(batch)
        if device.type != "cuda":  # flex attention has no backward on the CPU; good for a few rows of a test
            numbers, index = batch[2], torch.arange(data.ROW)
            dense = (numbers[:, :, None] == numbers[:, None, :]) & (index[:, None] >= index[None, :])
            return model.loss(ids, targets, weights, dense[:, None], cos, sin)
        with torch.autocast("cuda", torch.bfloat16):
            return model.loss(ids, targets, weights, document_mask(batch[2], blocks), cos, sin)

    compiled = torch.compile(loss_of, dynamic=False) if device.type == "cuda" else loss_of
    steps_per_shard = data.ROWS_PER_SHARD // arguments.rows
    total_steps = arguments.steps or 10**9
    total_shards = [data.FIRST_SHARDS if not arguments.steps else math.ceil(arguments.steps / steps_per_shard)]
    if arguments.steps:
        data.announce_total(folder, total_shards[0])
    else:
        total_shards[0] = 10**9
    ready = batches(folder, arguments.rows, device, total_shards)
    start = time.monotonic()
    timed_from = 0.0
    curve: list[tuple[int, float, float]] = []
    losses: list[tuple[Tensor, Tensor]] = []
    step = 0
    while step < total_steps:
        batch = ready.get(timeout=180)
        progress = step / total_steps
        if not arguments.steps:  # the plan is an estimate; the rate must reach zero in time all the same
            progress = max(progress, (time.monotonic() - start) / arguments.seconds)
            if progress >= 1.0:
                break
        rate = rate_at(step, progress)
        # Not compiled: inductor's sort (torch 2.11) orders the blocks wrongly, and attention then reads other documents.
        blocks = document_blocks(batch[2])
        loss, weight = compiled(batch, blocks)
        torch.autograd.backward(loss / weight.clamp(min=1.0))
        muon.step(MUON_RATE * rate * arguments.rate)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * rate * arguments.rate
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append((loss.detach(), weight))
        step += 1
        if not arguments.steps and step in TIMED_STEPS:
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step == TIMED_STEPS[0]:
                timed_from = time.monotonic()
            else:
                seconds = (time.monotonic() - timed_from) / (TIMED_STEPS[1] - TIMED_STEPS[0])
                left = arguments.seconds - (time.monotonic() - start)
                # Long documents cost more attention than the short ones that were timed.
                total_steps = step + int(left / (seconds * arguments.slowdown))
                total_shards[0] = math.ceil(total_steps / steps_per_shard)
                data.announce_total(folder, total_shards[0])
                logger.info("%.1f ms a step, %d steps planned", seconds * 1000, total_steps)
        if step % 20 == 0 or step == total_steps:
            value = float(sum(float(part) for part, _ in losses) / max(1.0, sum(float(w) for _, w in losses)))
            losses.clear()
            elapsed = time.monotonic() - start
            curve.append((step, step * arguments.rows * data.ROW / 1e6, value))
            if step % 200 == 0 or step == total_steps or step < 100:
                logger.info(
                    "step %d  %.0f s  loss %.4f  %.2f Mtok/s  queue %d",
                    step,
                    elapsed,
                    value,
                    step * arguments.rows * data.ROW / elapsed / 1e6,
                    ready.qsize(),
                )
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}; lower --rate")
    for writer in writers:
        writer.terminate()
    shutil.rmtree(folder, ignore_errors=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save(
        arguments.out,
        model,
        curve,
        {
            "seed": arguments.seed,
            "steps": step,
            "planned_steps": total_steps,
            "tokens": step * arguments.rows * data.ROW,
            "seconds": round(time.monotonic() - start, 1),
            "rows": arguments.rows,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "final_loss": curve[-1][2] if curve else None,
        },
    )


def save(out: Path, model: Tale, curve: list[tuple[int, float, float]], facts: dict[str, object]) -> None:
    """Write weights, config, curve and facts."""
    save_file(model.state_for_hf(), out / "model.safetensors", metadata={"format": "pt"})
    config = hf_config(model.shape, eos_token_ids=[2, 0], bos_token_id=None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    with open(out / "loss.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "million_tokens", "loss"])
        writer.writerows((s, f"{t:.1f}", f"{v:.5f}") for s, t, v in curve)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, default=Path("registry/builtin/tale"), help="the folder with tokenizer.json"
    )
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=32, help="rows of 8,192 tokens in a step")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument(
        "--slowdown", type=float, default=1.3, help="how much slower later steps are than the timed ones"
    )
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments)


if __name__ == "__main__":
    main()
