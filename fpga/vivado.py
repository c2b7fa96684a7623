"""A card's Vivado project: Verilog around its gateware, constraints, Tcl that builds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sat.fpga import card as cards
from sat.fpga import vcu1525
from sat.fpga.card import Card, card_verilog
from sat.fpga.ultrascale import XCVU9P
from sat.fpga.vivado_ip import ID_BITS, Ip, blocks
from sat.rtl import axi as buses
from sat.rtl.config import SatConfig, require

CARD_MODULE, TOP = "sat_card", "vcu1525"
ELEMENT_LUTS, ENGINE_LUTS = 639, 115_600
"""What an element takes, and a 32x32 device besides them: for the choice of rows in regions."""
ENGINES = ("load", "store", "update", "sequencer", "fetch")
"""Parts of the device that are kept in the middle region, with what is inside them."""


@dataclass(frozen=True)
class Port:
    """A port of the top: its direction, its bits, and whether it is written as a vector."""

    way: str
    bits: int
    vector: bool


def ports() -> dict[str, Port]:
    """Return the ports of the top, as the card's pins have them."""
    found: dict[str, Port] = {}
    for pin in vcu1525.PINS:
        name, _, bit = pin.port.partition("[")
        before = found.get(name, Port("", 0, bool(bit)))
        found[name] = Port(_way(name), before.bits + 1, before.vector)
    return found


def _way(name: str) -> str:
    if name.startswith(("ddr4_dq", "ddr4_dqs")):
        return "inout"
    return "output" if name.startswith(("pcie_tx", "led", "ddr4_")) else "input"


def check(config: SatConfig, clock_hz: int) -> None:
    """Raise ValueError unless this card can have such a device.

    Raises
    ------
    ValueError
        It has several data ports, addresses that the memory has not, a clock that nothing makes,
        or more elements than the FPGA has multipliers.
    """
    axi, most = config.axi, vcu1525.MEMORY_ADDRESS_BITS
    require(
        axi.ports == 1,
        f"ports={axi.ports}: the card's memory, one of four DIMMs, is one port; take 1",
    )
    require(
        axi.address_bits <= most,
        f"address_bits={axi.address_bits}: the memory has {most}; take less",
    )
    require(
        10_000_000 <= clock_hz <= vcu1525.CONTROLLER_HZ,
        f"clock of {clock_hz / 1e6:g} MHz: must be 10 to {vcu1525.CONTROLLER_HZ / 1e6:g}",
    )
    require(
        config.rows * config.cols <= XCVU9P["DSP"],
        f"array={config.array}: the FPGA has {XCVU9P['DSP']:,} multipliers, not one for each "
        "element; make it smaller",
    )


def project_files(card: Card, clock_hz: int) -> dict[str, str]:
    """Return the files of a card's Vivado project, by name.

    Parameters
    ----------
    card : Card
    clock_hz : int
        Of the device.

    Returns
    -------
    dict of str
        ``sat_card.v``: the card's gateware. ``vcu1525.v``: the top, with AMD's blocks around it.
        ``vcu1525.xdc``: pins, clocks, regions. ``build.tcl``: makes the blocks, and the bitstream.

    Raises
    ------
    ValueError
        As `check`.
    """
    check(card.config, clock_hz)
    made = blocks(card.config.axi, cards.ADDRESS_BITS, clock_hz)
    return {
        f"{CARD_MODULE}.v": card_verilog(card, CARD_MODULE),
        f"{TOP}.v": top(card.config, made),
        f"{TOP}.xdc": constraints(card.config),
        "build.tcl": script(made),
    }


class _Wires:
    """Declares wires, and connects blocks' ports to them by name."""

    def __init__(self, made: Iterable[Ip]) -> None:
        self.blocks = {block.name: block for block in made}
        self.lines: list[str] = []
        self.instances: list[str] = []

    def bus(self, bits: int, *names: str) -> None:
        self.lines += [f"wire [{bits - 1}:0] {name};" for name in names]

    def place(self, module: str, ports: Mapping[str, str]) -> None:
        """Place a block; its ports that are not named stay open if they are outputs."""
        block = self.blocks.get(module)
        given = dict(ports)
        if block is not None:
            for port, (way, bits) in block.ports.items():
                given.setdefault(port, "" if way == "output" else f"{bits}'d0")
        wires = ",\n".join(f"  .{port}({wire})" for port, wire in given.items())
        self.instances.append(f"{module} {module.removesuffix('_0')} (\n{wires}\n);")

    def join(self, name: str, members: Mapping[str, int]) -> dict[str, str]:
        """Declare the wires of a bus; return them by member."""
        for member, bits in members.items():
            self.bus(bits, f"{name}_{member}")
        return {member: f"{name}_{member}" for member in members}


def _members(signature: object) -> dict[str, int]:
    from amaranth import Shape

    members = signature.members  # type: ignore[attr-defined]
    return {name: Shape.cast(member.shape).width for name, member in members.items()}


def top(config: SatConfig, made: Iterable[Ip]) -> str:
    """Return the card's top: its gateware, AMD's blocks, clocks and resets between them.

    Everything but PCIe and the memory's controller has the device's clock. Whatever asks for memory
    crosses to the controller's clock inside the interconnect.
    """
    wires = _Wires(made)
    width = vcu1525.MEMORY_ADDRESS_BITS
    wires.bus(
        1, "pcie_clk", "pcie_clk_gt", "pcie_reset", "pcie_up", "axi_clk", "axi_reset_n",
        "memory_clk", "memory_reset", "memory_ready", "clk", "locked", "irq",
    )  # fmt: skip
    axi, lite = config.axi, cards.ADDRESS_BITS

    # PCIe's own clock, twice: for the transceivers, and for the fabric.
    wires.place(
        "IBUFDS_GTE4",
        {"I": "pcie_refclk_p", "IB": "pcie_refclk_n", "CEB": "1'b0", "O": "pcie_clk_gt",
         "ODIV2": "pcie_clk"},
    )  # fmt: skip
    wires.place("IBUF", {"I": "pcie_reset_n", "O": "pcie_reset"})

    def asking(block: str, prefix: str, name: str, *, upper: bool = False) -> dict[str, str]:
        """Declare the wires of a bus after a block's ports; return what to connect there."""
        found = {}
        for port, (_, bits) in wires.blocks[block].ports.items():
            member = port.removeprefix(prefix).lower()
            plain = port.startswith(prefix) and not member.startswith(("ctrl_", "aclk", "areset"))
            if plain:
                wires.bus(bits, f"{name}_{member}")
                found[port] = f"{name}_{member}"
        return found

    host = asking("xdma_0", "m_axi_", "host")
    registers = asking("xdma_0", "m_axil_", "registers")
    wires.place(
        "xdma_0",
        {
            "sys_clk": "pcie_clk", "sys_clk_gt": "pcie_clk_gt", "sys_rst_n": "pcie_reset",
            "user_lnk_up": "pcie_up", "axi_aclk": "axi_clk", "axi_aresetn": "axi_reset_n",
            "pci_exp_rxp": "pcie_rx_p", "pci_exp_rxn": "pcie_rx_n",
            "pci_exp_txp": "pcie_tx_p", "pci_exp_txn": "pcie_tx_n",
            **host, **registers,
        },
    )  # fmt: skip
    memory = asking("axi_interconnect_0", "M00_AXI_", "memory", upper=True)
    slaves = {
        name: asking("axi_interconnect_0", f"S{n:02}_AXI_", f"s{n}", upper=True)
        for n, name in enumerate(("host", "imem", "dmem"))
    }
    wires.place(
        "axi_interconnect_0",
        {
            "INTERCONNECT_ACLK": "memory_clk", "INTERCONNECT_ARESETN": "memory_reset_n",
            "M00_AXI_ACLK": "memory_clk",
            "S00_AXI_ACLK": "axi_clk", "S01_AXI_ACLK": "clk", "S02_AXI_ACLK": "clk",
            **memory,
            **{port: wire for ports in slaves.values() for port, wire in ports.items()},
        },
    )  # fmt: skip
    pins = {name.replace("ddr4_", "c0_ddr4_"): name for name in ports() if name.startswith("ddr4_")}
    wires.place(
        "ddr4_0",
        {
            "sys_rst": "1'b0", "c0_sys_clk_p": "memory_clk_p", "c0_sys_clk_n": "memory_clk_n",
            "c0_init_calib_complete": "memory_ready", "c0_ddr4_ui_clk": "memory_clk",
            "c0_ddr4_ui_clk_sync_rst": "memory_reset", "c0_ddr4_aresetn": "memory_reset_n",
            **pins,
            **{
                f"c0_ddr4_s_axi_{port.removeprefix('M00_AXI_').lower()}": wire
                for port, wire in memory.items()
            },
        },
    )  # fmt: skip
    wires.place(
        "device_clock_0",
        {"clk_in1": "memory_clk", "reset": "memory_reset", "clk_out1": "clk", "locked": "locked"},
    )
    slow = asking("register_clock_0", "m_axi_", "csr")
    wires.place(
        "register_clock_0",
        {
            "s_axi_aclk": "axi_clk", "s_axi_aresetn": "axi_reset_n",
            "m_axi_aclk": "clk", "m_axi_aresetn": "~reset",
            **{
                f"s_axi_{port.removeprefix('m_axil_')}": (
                    f"{wire}[{lite - 1}:0]" if port.endswith("addr") else wire
                )
                for port, wire in registers.items()
            },
            **slow,
        },
    )  # fmt: skip

    # The device's three buses, and where they go.
    csr = {f"csr__{port.removeprefix('m_axi_')}": wire for port, wire in slow.items()}
    read = wires.join("imem", _members(buses.Axi4ReadSignature(axi.instructions)))
    data = wires.join("dmem", _members(buses.Axi4Signature(axi.port)))
    wires.place(
        CARD_MODULE,
        {
            "clk": "clk", "rst": "reset", "irq": "irq", **csr,
            **{f"imem__{member}": wire for member, wire in read.items()},
            **{f"dmem__{member}": wire for member, wire in data.items()},
        },
    )  # fmt: skip
    joined = [
        *_joined("s0", "host", slaves["host"], wires.blocks["xdma_0"], "m_axi_", width),
        *_device_joined("s1", read, slaves["imem"], axi.address_bits, width, writes=False),
        *_device_joined("s2", data, slaves["dmem"], axi.address_bits, width, writes=True),
    ]
    return "\n".join(
        [
            f"// {TOP}: a SAT device of {config.array} on a VCU1525. Written by sat synth.",
            "`default_nettype none",
            f"module {TOP} (",
            ",\n".join(
                f"  {port.way} wire {f'[{port.bits - 1}:0] ' if port.vector else ''}{name}"
                for name, port in ports().items()
            ),
            ");",
            *wires.lines,
            "// The device waits until its clock is steady, the memory ready and PCIe there.",
            '(* ASYNC_REG = "TRUE" *) reg [2:0] waiting;',
            "wire hold = ~(locked & memory_ready & axi_reset_n);",
            "always @(posedge clk or posedge hold)",
            "  if (hold) waiting <= 3'b111; else waiting <= {waiting[1:0], 1'b0};",
            "wire reset = waiting[2];",
            "reg memory_reset_n;",
            "always @(posedge memory_clk) memory_reset_n <= ~memory_reset;",
            "assign led = {irq, memory_ready, pcie_up};",
            *joined,
            *wires.instances,
            "endmodule",
            "`default_nettype wire",
            "",
        ]
    )


def _joined(
    name: str, other: str, slave: Mapping[str, str], block: Ip, prefix: str, width: int
) -> list[str]:
    """Return what joins a slave's wires to those of a block that asks."""
    lines = []
    for port, (way, bits) in block.ports.items():
        if not port.startswith(prefix):
            continue
        member = port.removeprefix(prefix)
        theirs, ours = f"{other}_{member}", f"{name}_{member}"
        if way == "output":
            cut = f"[{width - 1}:0]" if member.endswith("addr") and bits > width else ""
            lines.append(f"assign {ours} = {theirs}{cut};")
        else:
            lines.append(f"assign {theirs} = {ours};")
    return lines + _quality(name)


def _device_joined(
    name: str,
    bus: Mapping[str, str],
    slave: Mapping[str, str],
    bits: int,
    width: int,
    *,
    writes: bool,
) -> list[str]:
    """Return what joins a slave's wires to those of one of the device's buses."""
    lines = []
    for member, wire in bus.items():
        ours = f"{name}_{member}"
        if member in (
            "arready",
            "awready",
            "wready",
            "bvalid",
            "rvalid",
            "rlast",
            "bresp",
            "rresp",
            "rdata",
        ):
            lines.append(f"assign {wire} = {ours};")
        elif member in ("rid", "bid"):
            lines.append(f"assign {wire} = {ours}[{buses.ID_BITS - 1}:0];")
        elif member in ("arid", "awid"):
            lines.append(f"assign {ours} = {{{ID_BITS - buses.ID_BITS}'d0, {wire}}};")
        elif member.endswith("addr") and width > bits:
            lines.append(f"assign {ours} = {{{width - bits}'d0, {wire}}};")
        else:
            lines.append(f"assign {ours} = {wire};")
    if not writes:
        joined = {f"{name}_{member}" for member in bus}
        for port, wire in slave.items():
            member = port.split("_AXI_")[1].lower()
            asks = member[:2] in ("aw", "wd", "ws", "wl", "wv") or member == "bready"
            if asks and member not in ("awready", "awqos") and wire not in joined:
                lines.append(f"assign {wire} = 0;")
    return lines + _quality(name)  # fmt: skip


def _quality(name: str) -> list[str]:
    return [f"assign {name}_{channel}qos = 4'd0;" for channel in ("aw", "ar")]


def rows_of_regions(rows: int, cols: int) -> list[range]:
    """Return the rows of the array that each region has, so that all are about as full.

    Neighbours stay neighbours: partial sums and right operands go from row to row. The middle
    region has the engines as well.
    """
    element = ELEMENT_LUTS * cols
    engines = ENGINE_LUTS * cols / 32
    even = (element * rows + engines) / vcu1525.SLRS
    middle = min(rows, max(0, round((even - engines) / element)))
    below = (rows - middle + 1) // 2
    return [range(below), range(below, below + middle), range(below + middle, rows)]


def crossings(rows: int, cols: int) -> tuple[int, ...]:
    """Return the rows that begin a region behind another: `SatConfig.crossings` of this card."""
    return tuple(region.start for region in rows_of_regions(rows, cols) if region and region.start)


def constraints(config: SatConfig) -> str:
    """Return the constraints of a card, XDC."""
    lines = [
        f"# {TOP}: pins, clocks, regions of a SAT device of {config.array}. Written by sat synth.",
        "set_property CFGBVS GND [current_design]",
        "set_property CONFIG_VOLTAGE 1.8 [current_design]",
        "set_property CONFIG_MODE SPIx4 [current_design]",
        "set_property BITSTREAM.GENERAL.COMPRESS true [current_design]",
        "set_property BITSTREAM.CONFIG.SPI_BUSWIDTH 4 [current_design]",
        "set_property BITSTREAM.CONFIG.SPI_32BIT_ADDR YES [current_design]",
        "set_property BITSTREAM.CONFIG.CONFIGRATE 85.0 [current_design]",
        "",
    ]
    for pin in vcu1525.PINS:
        standard = f" IOSTANDARD {pin.standard}" if pin.standard else ""
        lines.append(
            f"set_property -dict {{PACKAGE_PIN {pin.site}{standard}}} [get_ports {{{pin.port}}}]"
        )
    lines += [
        "set_property PULLUP true [get_ports pcie_reset_n]",
        "",
        "create_clock -period 10.000 -name pcie_refclk [get_ports pcie_refclk_p]",
        "# The memory's clock is the controller's to constrain; resets and LEDs wait for nobody.",
        "set_false_path -from [get_ports pcie_reset_n]",
        "set_false_path -to [get_ports {led[*]}]",
        "set_false_path -to [get_pins -hierarchical -filter {NAME =~ waiting_reg[*]/PRE}]",
        "",
        "# Rows of the array by regions, from below; all else is in the middle, at PCIe.",
    ]
    for number, rows in enumerate(rows_of_regions(config.rows, config.cols)):
        block = f"rows_slr{number}"
        if rows:
            which = f"({'|'.join(map(str, rows))})_[0-9]+"
            # Registers at a crossing are beyond it: what is long is the wire to them.
            cells = f".*/(uspe_{which}|(b_in|psum_in)_{which}_reg.*)"
            lines += _region(block, number, f"-hierarchical -regexp {{{cells}}}")
    lines += _region(
        "engines",
        1,
        "{xdma ddr4 axi_interconnect}",
        f"-hierarchical -regexp {{{CARD_MODULE}/device/({'|'.join(ENGINES)})}}",
    )
    return "\n".join(lines) + "\n"


def _region(name: str, number: int, *cells: str) -> list[str]:
    """Return what keeps cells in a region of the FPGA."""
    return [
        f"create_pblock {name}",
        f"resize_pblock [get_pblocks {name}] -add {{SLR{number}}}",
        *(f"add_cells_to_pblock [get_pblocks {name}] [get_cells {which}]" for which in cells),
    ]


def script(made: Iterable[Ip]) -> str:
    """Return the Tcl that makes a bitstream: ``vivado -mode batch -source build.tcl``."""
    lines = [
        f"# Makes {TOP}.bit and reports. Written by sat synth; run it in this folder.",
        f"create_project -force {TOP} project -part {vcu1525.PART}",
        f"add_files [list {CARD_MODULE}.v {TOP}.v]",
        f"add_files -fileset constrs_1 {TOP}.xdc",
        f"set_property top {TOP} [current_fileset]",
    ]
    for block in made:
        words = ("vendor", "library", "name", "version")
        what = " ".join(
            f"-{word} {part}" for word, part in zip(words, block.vlnv.split(":"), strict=True)
        )
        settings = "".join(
            f"  CONFIG.{key} {{{value}}} \\\n" for key, value in block.settings.items()
        )
        lines += [
            f"create_ip {what} -module_name {block.name}",
            f"set_property -dict [list \\\n{settings}] [get_ips {block.name}]",
            f"generate_target all [get_ips {block.name}]",
        ]
    lines += [
        "update_compile_order -fileset sources_1",
        "launch_runs synth_1 -jobs 8",
        "wait_on_run synth_1",
        'if {[get_property PROGRESS [get_runs synth_1]] != "100%"} { error "synthesis failed" }',
        "set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]",
        "launch_runs impl_1 -to_step write_bitstream -jobs 8",
        "wait_on_run impl_1",
        'if {[get_property PROGRESS [get_runs impl_1]] != "100%"} { error "routing failed" }',
        "open_run impl_1",
        "report_utilization -slr -file utilization.rpt",
        "report_timing_summary -file timing.rpt",
        'if {[get_property SLACK [get_timing_paths]] < 0} { error "timing is not met" }',
        f"file copy -force project/{TOP}.runs/impl_1/{TOP}.bit {TOP}.bit",
    ]
    return "\n".join(lines) + "\n"
