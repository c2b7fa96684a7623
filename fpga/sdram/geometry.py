"""How large a chip is, and how it is wired."""

from __future__ import annotations

from dataclasses import dataclass

from sat.rtl.config import require


@dataclass(frozen=True)
class Geometry:
    """What tells one chip from another; by itself that of a ULX3S.

    Parameters
    ----------
    rows, columns, banks : int
        Address bits. Rows have more than 10: their bit 10 says something else with other commands.
    data_bits : int
        Wires of a column: 16 or 32.
    refreshes : int
        REFRESH commands in 64 ms; as many as rows, or more.
    masked : bool
        The board has wires for DQM: without them, a column is written whole.

    Raises
    ------
    ValueError
        There is no such chip.
    """

    rows: int = 13
    columns: int = 9
    banks: int = 2
    data_bits: int = 16
    refreshes: int = 8192
    masked: bool = True

    def __post_init__(self) -> None:
        least = {"rows": 11, "columns": 1, "banks": 1}
        for name, bits in least.items():
            value = getattr(self, name)
            require(value >= bits, f"{name}={value}: must be {bits} address bits or more")
        require(self.columns <= 10, f"columns={self.columns}: must be 10 address bits or fewer")
        require(self.data_bits in (16, 32), f"data_bits={self.data_bits}: must be 16 or 32")
        require(
            self.refreshes >= 1 << self.rows,
            f"refreshes={self.refreshes}: must be {1 << self.rows} or more, one for each row",
        )

    @property
    def lanes(self) -> int:
        """Bytes of a column."""
        return self.data_bits // 8

    @property
    def address_bits(self) -> int:
        """Bits of a column's number in the whole chip."""
        return self.rows + self.columns + self.banks

    @property
    def size(self) -> int:
        """Bytes."""
        return self.lanes << self.address_bits
