"""What each of the paper's ideas saves on a layer: programs without it, run on the RTL.

========================= ======================================================================
one dataflow              FF and BP under output stationary, or weight stationary, mappings only
nothing ahead             as `sat.schedules.ablation`
no overlap                a FENCE wherever the next instruction is another engine's: only one of
                          them works at a time
no interleave             each stage's product as a stack of tiles of one sum a USPE: the array
                          takes an operand every so many cycles as the adder has stages
no pre-generation         before FF, and before BP, an update of learning rate 0 prunes both ways;
                          the step's own update is the dense layer's
========================= ======================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sat.dataflow.columns import encode
from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.compile.step import CompiledStep, Sgd, compile_step
from sat.dataflow.cost import stage_cost
from sat.dataflow.cycles import predict
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.mapping import ceil_div
from sat.dataflow.products import Product
from sat.dataflow.program import Program
from sat.devices.golden import GoldenDevice as Golden
from sat.devices.rtl import RtlDevice
from sat.devices.stages import random_tensors, write_step
from sat.errors import DeviceError
from sat.rtl.config import SatConfig
from sat.rtl.isa import ENGINES, Opcode, Status
from sat.schedules.running import run_product
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
NO_STEP = Sgd(learning_rate=0.0)
"""An update that prunes weights, and leaves them."""

WHOLE = "whole"
"""The step with all ideas."""
WHOLE_PRODUCTS = "whole, as products"
"""FF, BP and WU as products of plain matrices: what tiles of one sum are compared with."""


@dataclass(frozen=True)
class Counted:
    """Programs of a layer's step, run on the RTL.

    Attributes
    ----------
    idea : str
        What they do without.
    of : str
        What they are compared with: `WHOLE` or `WHOLE_PRODUCTS`.
    cycles, predicted : int
        That the device counted; that the cycle model gives.
    different : int
        Bytes of memory, or sums of products, that are not golden's.
    """

    idea: str
    of: str
    cycles: int
    predicted: int
    different: int

    @property
    def right(self) -> bool:
        """Whether every bit and every cycle is as it should be."""
        return not self.different and self.cycles == self.predicted


def in_turn(program: Program) -> Program:
    """Return a program with a FENCE wherever the next instruction is another engine's.

    It does the same, and only one engine works at a time: what waits for a semaphore waits for an
    instruction in front of it, which is done.
    """
    engine_of = np.full(256, -1)
    for number, opcodes in enumerate(ENGINES.values()):
        engine_of[[opcode.value for opcode in opcodes]] = number
    words = program.words
    engine = engine_of[(words[:, 0] & np.uint64(0xFF)).astype(np.int64)]
    change = np.flatnonzero((engine[1:] != engine[:-1]) & (engine[1:] >= 0) & (engine[:-1] >= 0))
    fences = encode(Opcode.FENCE, len(change), {})
    return Program.of(np.insert(words, change + 1, fences, axis=0))


def one_sum(product: Product, config: SatConfig) -> Product:
    """Return a product as a stack of tiles that have one sum for each USPE."""
    count = ceil_div(product.rows, config.rows) * ceil_div(product.cols, config.cols)
    return replace(product, rows=config.rows, cols=config.cols, count=count)


def stage_products(layer: Layer) -> list[Product]:
    """Return FF, BP and WU of a layer without groups or strides as products of plain matrices."""
    if layer.groups != 1 or layer.stride != (1, 1):
        raise ValueError(f"{layer}: an ablation's layer has groups=1 and stride=(1, 1)")
    into, out, taps = layer.in_channels, layer.out_channels, layer.taps
    return [
        Product(layer.out_positions, out, taps * into, *layer.ff),
        Product(layer.in_positions, into, taps * out, *layer.bp),
        Product(out, taps * into, layer.out_positions),
    ]


def layer_ablation(
    layer: Layer, config: SatConfig, timing: MemoryTiming, *, seed: int = 0
) -> Iterator[Counted]:
    """Yield a layer's training step with all ideas, and without each one, counted on the RTL.

    Parameters
    ----------
    layer : Layer
        Sparse, without groups or strides.

    Raises
    ------
    ValueError
        The layer has groups or strides, or does not fit the device.
    DeviceError
        A program did not end well.
    """
    products = stage_products(layer)
    runner = _Runner(layer, config, timing, seed)
    stages = ("ff", "bp", "wu", "update")
    plans = {stage: stage_cost(stage, layer, config, timing).plan for stage in stages}
    yield runner.steps(WHOLE, [((stage,), SGD, layer) for stage in stages], plans)
    for dataflow in ("os", "ws"):
        try:
            forced = {
                stage: stage_cost(stage, layer, config, timing, dataflow=dataflow).plan
                for stage in ("ff", "bp")
            }
        except DoesNotFit:
            continue  # no row of USPEs holds the weights
        name = {"os": "output stationary only", "ws": "weight stationary only"}[dataflow]
        yield runner.steps(name, [((stage,), SGD, layer) for stage in stages], {**plans, **forced})
    late = {
        stage: StagePlan(plan.mappings, plan.order._replace(ahead=0, behind=0))
        for stage, plan in plans.items()
    }
    yield runner.steps("nothing ahead", [((stage,), SGD, layer) for stage in stages], late)
    yield runner.steps(
        "no overlap", [((stage,), SGD, layer) for stage in stages], plans, fences=True
    )
    dense = replace(layer, ff=(1, 1), bp=(1, 1))
    at_use = [
        (("update", "ff"), NO_STEP, layer), (("update", "bp"), NO_STEP, layer),
        (("wu",), SGD, layer), (("update",), SGD, dense),
    ]  # fmt: skip
    yield runner.steps("no pre-generation", at_use, {k: plans[k] for k in ("ff", "bp", "wu")})
    yield runner.products(WHOLE_PRODUCTS, products)
    yield runner.products("no interleave", [one_sum(product, config) for product in products])


class _Runner:
    """A simulated device, and a golden one that runs the same programs on the same bytes."""

    def __init__(self, layer: Layer, config: SatConfig, timing: MemoryTiming, seed: int):
        self.config, self.timing, self.seed = config, timing, seed
        self.tensors = random_tensors(layer, seed)

    def steps(
        self,
        idea: str,
        programs: list[tuple[tuple[str, ...], Sgd, Layer]],
        plans: Mapping[str, StagePlan],
        *,
        fences: bool = False,
    ) -> Counted:
        """Run programs of stages, and add up."""
        runs = []
        for stages, sgd, layer in programs:
            step = compile_step(layer, self.config, self.timing, stages, sgd, plans=plans)
            if fences:
                program = in_turn(step.program)
                end = step.end + len(program.encode()) - len(step.program.encode())
                step = replace(step, program=program, end=end)
            memory = self.memory(step.end)
            write_step(memory, step, self.given(step))
            runs.append(self.run(step.program, step.address, memory))
        return self.total(idea, WHOLE, runs)

    def given(self, step: CompiledStep) -> dict[str, np.ndarray]:
        """Return the tensors that a step has places for."""
        names = ("w", "v", "x", "dy", "g", "bias", "in_mask")
        return {name: self.tensors[name] for name in names if name in self.tensors}

    def products(self, idea: str, products: list[Product]) -> Counted:
        """Run products of random matrices, and add up."""
        rng, runs = np.random.default_rng(self.seed), []
        golden = Golden(self.config)
        with RtlDevice(config=self.config, memory=self.timing) as device:
            for product in products:
                cycles, _, different = run_product(product, device, golden, rng)
                runs.append((cycles, device.predict(product), different))
        return self.total(idea, WHOLE_PRODUCTS, runs)

    def memory(self, end: int) -> np.ndarray:
        """Return random bytes."""
        return np.random.default_rng(self.seed).integers(0, 256, end + 4096, dtype=np.uint8)

    def run(self, program: Program, address: int, memory: np.ndarray) -> tuple[int, int, int]:
        """Return cycles counted and predicted, and the bytes that are not golden's."""
        golden = GoldenDevice(self.config, memory.copy())
        with DeviceRtl(self.config, self.timing, memory_bytes=len(memory)) as device:
            device.memory[:] = memory
            outcome = device.run(address, len(program))
            if outcome.status is not Status.DONE:
                raise DeviceError(f"a program ended with {outcome}")
            golden.run(address, len(program))
            different = int(np.count_nonzero(golden.memory != device.memory))
        predicted = predict(program, self.config, self.timing, address).cycles
        return outcome.cycles, predicted, different

    @staticmethod
    def total(idea: str, of: str, runs: list[tuple[int, int, int]]) -> Counted:
        return Counted(idea, of, *(sum(values) for values in zip(*runs, strict=True)))
