"""How much processes must send each other in a training step, and how long a step must compute to hide it.

Ring algorithms send (n - 1) / n of the data from each of n processes for a gather or a reduce-scatter, twice that for
an all-reduce (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"). Gradients
are float32. Checked against what two processes really send: ``benchmarks/communication.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GRADIENT = 4  # bytes a parameter
STATE = 4 + 4 + 8 + 4  # bytes a parameter: float32 weight, gradient, AdamW's two moments, one average


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines of equal GPUs.

    Args:
        gpus: All of them.
        per_node: In one machine.
        inside: Bytes per second that a GPU sends to others of its machine.
        between: Bytes per second that each GPU's network card sends to other machines. Collectives over whole machines
            run as one ring for each card, so that all cards of a machine carry them together.
        latency: Seconds of one message between machines.
        hop: Seconds of one inside.
        memory: Bytes of a GPU.
    """

    gpus: int
    per_node: int = 8
    inside: float = 400e9
    between: float = 45e9
    latency: float = 10e-6
    hop: float = 1.5e-6
    memory: float = 80e9

    def seconds(self, sent: float, processes: int, *, operations: int, tree: bool = False) -> float:
        """To send ``sent`` bytes from each of so many processes that fill whole machines.

        Args:
            operations: Separate ones: each waits for messages to pass all machines, or with ``tree`` (all-reduces) as
                many as a tree of them is high, up and down.
        """
        machines = max(1, processes // self.per_node)
        speed = self.inside if machines == 1 else min(self.inside, self.between * self.per_node)
        hops = 2 * math.log2(machines) if tree else machines - 1
        return sent / speed + operations * (
            hops * self.latency + (processes - machines) / (machines if tree else 1) * self.hop
        )


@dataclass(frozen=True)
class Cost:
    """Of one strategy in one training.

    Args:
        sent: Bytes that each process sends in a step.
        seconds: Of it all; a step that computes so long can hide it.
        held: Bytes of weights, gradients, moments and average on each GPU, without activations.
        fits: Whether that leaves a fifth of the memory for activations.
    """

    sent: float
    seconds: float
    held: float
    fits: bool


def data_parallel(parameters: float, cluster: Cluster, *, bucket: float = 25e6) -> Cost:
    """DDP: an all-reduce of the gradients in buckets; everything is held by everybody."""
    n = cluster.gpus
    sent = 2 * share(n) * GRADIENT * parameters
    buckets = max(1, round(GRADIENT * parameters / bucket))
    held = STATE * parameters
    seconds = cluster.seconds(sent, n, operations=buckets, tree=True)
    return Cost(sent, seconds, held, held < 0.8 * cluster.memory)


def fully_sharded(
    parameters: float,
    cluster: Cluster,
    *,
    blocks: int = 28,
    replicas: int = 1,
    weight_bytes: int = 4,
    reshard: bool = True,
) -> Cost:
    """FSDP: weights gathered for the forward and again for the backward pass, gradients reduced to shares.

    Args:
        parameters: Trained ones.
        cluster: Where.
        blocks: That are gathered one by one.
        replicas: Groups that each hold the whole; between them the shares of the gradients are all-reduced.
        weight_bytes: 2 when weights are gathered in bfloat16.
        reshard: Weights go after the forward pass.
    """
    n = cluster.gpus // replicas
    gathers = 2 if reshard else 1
    inside = share(n) * parameters * (gathers * weight_bytes + GRADIENT)
    seconds = cluster.seconds(inside, n, operations=(gathers + 1) * blocks)
    between = 2 * share(replicas) * GRADIENT * parameters / n
    if replicas > 1:
        seconds += between / cluster.between + 2 * blocks * math.log2(replicas) * cluster.latency
    held = STATE * parameters / n + (0 if reshard else weight_bytes * parameters)
    return Cost(inside + between, seconds, held, held < 0.8 * cluster.memory)


def share(n: int) -> float:
    return (n - 1) / n
