"""The one description of a SAT device: everything else about it is derived from here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

M_CHOICES = (2, 4, 8, 16)
"""Group sizes that an N:M pattern may have; 1:1 is dense."""

INDEX_BITS = 4
"""Bits of one stored index in memory: enough for the largest M."""

INDICES_TOGETHER = 16 // INDEX_BITS
"""Indices that index banks take together: 16 bits of them, as of any operand in memory."""

SEMAPHORES = 16
"""Counting semaphores that order the engines; one bit each in an instruction's masks."""

SEMAPHORE_BITS = 8
"""Width of a semaphore's counter."""

SEMAPHORE_MAX = (1 << SEMAPHORE_BITS) - 1
"""How often a semaphore may be raised beyond what was waited for."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_ints(owner: object, *names: str) -> None:
    """Raise ValueError unless attributes are ints: no bool, no fraction, no number of numpy's."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(
                f"{name}={value!r} is a {type(value).__name__}: must be an int; give it as one"
            )


def _require_types(config: Any) -> None:
    """Check the types of a configuration's fields, as their annotations say."""
    kinds: dict[str, type] = {"FpTiming": FpTiming, "AxiConfig": AxiConfig, "bool": bool}
    kinds |= {"tuple[int, ...]": tuple}
    for entry in fields(config):
        kind = kinds.get(str(entry.type))
        if kind is None:
            require_ints(config, entry.name)
        elif not isinstance(getattr(config, entry.name), kind):
            value = getattr(config, entry.name)
            ours = f"sat.rtl.config.{kind.__name__}(...)"
            give = {"bool": "True or False", "tuple": "(…,)"}.get(kind.__name__, ours)
            raise ValueError(
                f"{entry.name} is a {type(value).__name__}: must be a {kind.__name__}; give {give}"
            )


MOST_BEAT_WORDS = 16
"""Words of operands that a beat may hold: sub-banks of each bank."""


def least_words(beat_words: int) -> dict[str, int]:
    """Return the least depths of banks that take beats of so many words: two to a sub-bank."""
    least = max(8, beat_words)
    # Index banks are a quarter as deep as those of B.
    return {
        "a_words": 2 * least,
        "b_words": max(16, 8 * beat_words) if beat_words > 1 else 16,
        "update_words": 2 * least,
        "copy_words": 2 * least,
    }


def is_power_of_two(value: int) -> bool:
    """Return whether ``value`` is 1, 2, 4, …"""
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class FpTiming:
    """Pipeline depths of the floating-point units, in cycles; more stages raise the clock."""

    multiplier_stages: int = 1
    """Registers in a USPE's FP16 multiplier, 1 to 3."""
    adder_stages: int = 4
    """Registers in an FP32 adder, of a USPE and of the update engine, 1 to 8."""
    update_multiplier_stages: int = 3
    """Registers in an FP32 multiplier of the update engine, 3 to 5."""
    prune_stages: int = 1
    """Registers from an FP32 weight to the answer whether it stays, 1 to 3: the second is behind
    the rounding to FP16, or the memory that has it, the third between SORE's comparisons and its
    counts."""

    @property
    def round_stages(self) -> int:
        """Registers behind the rounding of weights, or the memory of rounded ones, 0 or 1."""
        return int(self.prune_stages >= 2)

    @property
    def sore_stages(self) -> int:
        """Registers in a SORE lane, 1 or 2."""
        return 1 + int(self.prune_stages == 3)

    def __post_init__(self) -> None:
        _require_types(self)
        m, a, u = self.multiplier_stages, self.adder_stages, self.update_multiplier_stages
        require(1 <= m <= 3, f"multiplier_stages={m}: must be 1, 2 or 3")
        require(1 <= a <= 8, f"adder_stages={a}: must be 1 to 8")
        require(3 <= u <= 5, f"update_multiplier_stages={u}: must be 3, 4 or 5")
        require(1 <= self.prune_stages <= 3, f"prune_stages={self.prune_stages}: must be 1, 2 or 3")


@dataclass(frozen=True, kw_only=True)
class AxiConfig:
    """The AXI4 memory ports: one for instructions, one or more for data."""

    data_bits: int = 128
    """Width of a data port, in bits: a power of two, 32 to 512."""
    ports: int = 1
    """Data ports that move a beat together, each a stripe of it: 1, 2 or 4."""
    address_bits: int = 32
    """Width of an address, in bits, 16 to 48."""
    burst_beats: int = 64
    """Longest burst, in beats: a power of two up to 256. No burst crosses 4 KiB."""
    outstanding: int = 16
    """Bursts that may be under way at once on each channel: a power of two, 2 to 64."""

    def __post_init__(self) -> None:
        _require_types(self)
        d, a, b, o = self.data_bits, self.address_bits, self.burst_beats, self.outstanding
        require(d in (32, 64, 128, 256, 512), f"data_bits={d}: must be 32, 64, 128, 256 or 512")
        require(self.ports in (1, 2, 4), f"ports={self.ports}: must be 1, 2 or 4")
        require(
            self.ports == 1 or d >= 128,
            f"ports={self.ports} of data_bits={d}: several ports have 128 to 512 bits each; "
            "widen one port first",
        )
        require(16 <= a <= 48, f"address_bits={a}: must be 16 to 48")
        require(
            is_power_of_two(b) and b <= 256, f"burst_beats={b}: must be a power of two up to 256"
        )
        require(
            is_power_of_two(o) and 2 <= o <= 64,
            f"outstanding={o}: must be a power of two from 2 to 64",
        )

    @property
    def port_bytes(self) -> int:
        """Bytes that one data port moves in a beat."""
        return self.data_bits // 8

    @property
    def beat_bytes(self) -> int:
        """Bytes in one beat of all data ports together."""
        return self.ports * self.port_bytes

    @property
    def beat_bits(self) -> int:
        """Bits in one beat of all data ports together."""
        return 8 * self.beat_bytes

    @property
    def data_ports(self) -> tuple[str, ...]:
        """Names of the device's data ports."""
        return ("dmem",) if self.ports == 1 else tuple(f"dmem{n}" for n in range(self.ports))

    @property
    def port(self) -> AxiConfig:
        """One of the data ports by itself."""
        return replace(self, ports=1)

    @property
    def instructions(self) -> AxiConfig:
        """The instruction port: a data port, but no wider than an instruction."""
        return replace(self, data_bits=min(self.data_bits, 256), ports=1)


@dataclass(frozen=True, kw_only=True)
class SatConfig:
    """A SAT device: array shape, patterns, pipelines, buffers, ports.

    Frozen and validated when made; run-time choices (pattern, dataflow, interleave split)
    are fields of instructions, not of this.

    Raises
    ------
    ValueError
        A value breaks its rule; the message names the value, the rule and the fix.
    """

    rows: int = 8
    """Rows of the systolic array (R), 1 to 64."""
    cols: int = 8
    """Columns of the systolic array (C), 1 to 64."""
    max_m: int = 8
    """Largest M of an N:M pattern: 2, 4, 8 or 16. Every smaller M runs too."""
    max_n: int = 8
    """Weights a USPE can hold when weight stationary, 1 to ``max_m``."""
    interleave: int = 4
    """Independent sums that take turns in one USPE (its adder is their ring): 1, 2, 4 or 8."""
    fp: FpTiming = field(default_factory=FpTiming)
    """Pipelines of the arithmetic."""
    a_words: int = 512
    """Depth of an A operand bank, in words of ``max_m`` elements; a power of two."""
    b_words: int = 512
    """Depth of a B operand bank, in words of ``max_m`` elements; a power of two."""
    sum_words: int = 512
    """Depth of a start bank and of an output bank, in FP32 sums; a power of two."""
    update_lanes: int = 2
    """Weights updated and pruned side by side: 1, 2, 4, 8, 16 or 32."""
    update_words: int = 256
    """Depth of a lane's banks of weights, momenta and gradients, in granules; a power of two."""
    copy_words: int = 256
    """Depth of a lane's banks of pruned copies, in granules of FP16; a power of two."""
    tile_weights: int = 1024
    """Weights of the largest tile that one UPDATE takes; a power of two."""
    crossings: tuple[int, ...] = ()
    """Rows, of 1 to ``rows`` - 1, in front of which what comes from the north passes a register
    more: where the array goes from one die of an FPGA to the next. All from there on is a cycle
    later."""
    prune_gathers: bool = False
    """Prune what transposed GATHERs bring into B along the positions (sparse WU): `b_groups`
    SORE lanes for each column. A granule then holds at most ``cols`` FP16 values, a beat at least
    as many."""
    axi: AxiConfig = field(default_factory=AxiConfig)
    """Memory ports."""
    queue_depth: int = 4
    """Instructions that wait in front of each engine; a power of two, 2 to 16."""
    watchdog_cycles: int = 65536
    """Cycles without any progress after which a program is stopped; a power of two."""

    def __post_init__(self) -> None:
        _require_types(self)
        for name in ("rows", "cols"):
            v = getattr(self, name)
            require(1 <= v <= 64, f"{name}={v}: must be an integer 1 to 64")
        for row in self.crossings:
            require(
                type(row) is int and 1 <= row < self.rows and self.crossings.count(row) == 1,
                f"crossings={self.crossings}: must be rows 1 to {self.rows - 1}, each once; "
                f"{row!r} is not",
            )
        require(self.max_m in M_CHOICES, f"max_m={self.max_m}: must be 2, 4, 8 or 16")
        require(
            1 <= self.max_n <= self.max_m,
            f"max_n={self.max_n}: must be 1 to max_m ({self.max_m})",
        )
        require(
            self.interleave in (1, 2, 4, 8), f"interleave={self.interleave}: must be 1, 2, 4 or 8"
        )
        require(
            self.interleave >= self.fp.adder_stages,
            f"interleave={self.interleave}: must be at least adder_stages "
            f"({self.fp.adder_stages}), or the adder would stall; raise it or shorten the adder",
        )
        require(
            self.update_lanes in (1, 2, 4, 8, 16, 32),
            f"update_lanes={self.update_lanes}: must be 1, 2, 4, 8, 16 or 32",
        )
        require(
            is_power_of_two(self.tile_weights) and 256 <= self.tile_weights <= 16384,
            f"tile_weights={self.tile_weights}: must be a power of two from 256 to 16384",
        )
        for name in ("a_words", "b_words", "sum_words", "update_words", "copy_words"):
            v = getattr(self, name)
            require(
                is_power_of_two(v) and 16 <= v <= 32768,
                f"{name}={v}: must be a power of two from 16 to 32768",
            )
        require(
            self.sum_words >= 2 * self.rows * self.interleave,
            f"sum_words={self.sum_words}: must hold two tiles of rows x interleave "
            f"({2 * self.rows * self.interleave})",
        )
        require(
            self.cols <= self.axi.beat_bits,
            f"cols={self.cols}: a mask bit for each must fit a beat ({self.axi.beat_bits} bits); "
            "widen the port",
        )
        together = self.beat_words
        require(
            together <= MOST_BEAT_WORDS,
            f"ports={self.axi.ports} x data_bits={self.axi.data_bits}: a beat must not hold more "
            f"than {MOST_BEAT_WORDS} words of max_m={self.max_m} FP16 values; narrow the ports or "
            "raise max_m",
        )
        for name, least in least_words(together).items():
            v = getattr(self, name)
            require(
                v >= least,
                f"{name}={v}: must be at least {least} for beats of {together} words; deepen the "
                "banks or narrow the ports",
            )
        if self.prune_gathers:
            granule, beat = self.granule_halves, self.axi.beat_bytes // 2
            require(
                granule <= self.cols <= beat,
                f"prune_gathers=True with cols={self.cols}: must be {granule} (the FP16 values of "
                f"a granule) to {beat} (of a beat); change cols, data_bits or ports",
            )
        require(
            is_power_of_two(self.queue_depth) and 2 <= self.queue_depth <= 16,
            f"queue_depth={self.queue_depth}: must be 2, 4, 8 or 16",
        )
        require(
            is_power_of_two(self.watchdog_cycles) and 1024 <= self.watchdog_cycles <= 1 << 30,
            f"watchdog_cycles={self.watchdog_cycles}: must be a power of two from 1024 to 2**30",
        )

    # Derived facts, each with the one definition that RTL, golden model and compiler share.

    @property
    def word_bytes(self) -> int:
        """Bytes in memory of one operand word (``max_m`` FP16 values)."""
        return 2 * self.max_m

    @property
    def granule_bytes(self) -> int:
        """Bytes of a granule, the unit of addresses and of the update engine's banks.

        A beat, or a word of operands where a beat holds several.
        """
        return min(self.axi.beat_bytes, self.word_bytes)

    @property
    def beats_per_word(self) -> int:
        """Beats that fill one operand word, at least 1."""
        return self.word_bytes // self.granule_bytes

    @property
    def beat_words(self) -> int:
        """Granules in a beat: words that the banks take, or give, in one cycle."""
        return self.axi.beat_bytes // self.granule_bytes

    def wide_groups(self, banks: int) -> int:
        """Return how many groups of channels a transposed GATHER writes in a cycle, at most.

        A group is a channel for each of so many banks. Of the sub-banks of a bank each group's word
        needs one: as many as a beat has are written together where that leaves at least four
        sub-banks to each, and a group has channels for all of them.
        """
        groups, rest = divmod(self.axi.beat_bytes // 2, banks)
        whole = rest == 0 and banks % self.beat_words == 0
        return groups if whole and 4 <= 4 * groups <= self.beat_words else 1

    def wide_stride(self, banks: int) -> int:
        """Return what strides are, modulo `beat_words`, of groups that are written together."""
        return self.beat_words // self.wide_groups(banks)

    @property
    def a_groups(self) -> int:
        """Groups of channels that go into A in a cycle, at most."""
        return self.wide_groups(self.rows)

    @property
    def b_groups(self) -> int:
        """Groups of channels that go into B in a cycle, at most."""
        return self.wide_groups(self.cols)

    @property
    def lane_bits(self) -> int:
        """Bits that select one of the ``max_m`` values of a word."""
        return (self.max_m - 1).bit_length()

    @property
    def granule_weights(self) -> int:
        """FP32 weights in one granule: a word of the update engine's banks."""
        return self.granule_bytes // 4

    @property
    def granule_halves(self) -> int:
        """FP16 values in one granule: a word of the pruned copies' banks and of a column's."""
        return self.granule_bytes // 2

    @property
    def mask_bytes(self) -> int:
        """Bytes in memory of the mask of one word of sums: a power of two, a bit a column."""
        size = 1
        while 8 * size < self.cols:
            size *= 2
        return size

    @property
    def row_bits(self) -> int:
        """Bits that name a row of the array, at least 1."""
        return max(1, (self.rows - 1).bit_length())

    @property
    def row_cycles(self) -> int:
        """Cycles that what passes from row to row takes to leave the last: R, and the crossings."""
        return self.rows + len(self.crossings)

    @property
    def weight_bits(self) -> int:
        """Bits that name a weight that a USPE holds, at least 1."""
        return max(1, (self.max_n - 1).bit_length())

    @property
    def indices_per_word(self) -> int:
        """Stored indices in one word of the index bank."""
        return 8 * self.word_bytes // INDEX_BITS

    @property
    def i_words(self) -> int:
        """Depth of an index bank: it holds the indices of a full B bank."""
        return max(4, self.b_words * self.max_m // self.indices_per_word)

    @property
    def instruction_queue(self) -> int:
        """Instructions that the fetch unit buffers."""
        return 16

    @property
    def array(self) -> str:
        """The array's shape as text, ``RxC``."""
        return f"{self.rows}x{self.cols}"

    def with_array(self, text: str) -> SatConfig:
        """Return this device with an array given as ``"RxC"``, without `crossings` of another.

        Raises
        ------
        ValueError
            ``text`` is not two integers 1 to 64 joined by ``x``.
        """
        rows, _, cols = text.lower().partition("x")
        require(
            rows.isdecimal() and cols.isdecimal(),
            f"array={text!r}: must be ROWSxCOLS, such as 8x8",
        )
        sums = self.sum_words
        while sums < 2 * int(rows) * self.interleave:
            sums *= 2
        crossings = self.crossings if int(rows) == self.rows else ()
        return replace(self, rows=int(rows), cols=int(cols), sum_words=sums, crossings=crossings)

    def to_json(self) -> str:
        """Return the configuration as JSON with sorted keys.

        ``prune_gathers`` and ``crossings`` are there only if they are set: devices without are
        named as before there were such.
        """
        made = asdict(self)
        for name in ("prune_gathers", "crossings"):
            if not made[name]:
                del made[name]
        return json.dumps(made, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SatConfig:
        """Return the configuration that ``to_json`` wrote.

        Raises
        ------
        ValueError
            The text is none, has fields that there are not, or a value breaks its rule.
        """
        raw = json.loads(text)
        parts: list[tuple[type, Any]] = [(cls, raw)]
        if isinstance(raw, dict):
            parts += [(FpTiming, raw.get("fp", {})), (AxiConfig, raw.get("axi", {}))]
        for kind, values in parts:
            require(isinstance(values, dict), f"{values!r}: must be a JSON object")
            known = {entry.name for entry in fields(kind)}
            require(
                values.keys() <= known,
                f"fields {sorted(values.keys() - known)}: {kind.__name__} has {sorted(known)}",
            )
        (_, own), (_, fp), (_, axi) = parts
        own = {**own, "fp": FpTiming(**fp), "axi": AxiConfig(**axi)}
        if isinstance(own.get("crossings"), list):
            own["crossings"] = tuple(own["crossings"])
        return cls(**own)

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration, for build caches."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
