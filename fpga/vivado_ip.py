"""AMD's blocks that a card takes from Vivado: their settings, and the ports that these give them.

Settings and ports are those of the product guides: PG195 (XDMA 4.1), PG150 (DDR4 2.2), PG059 (AXI
Interconnect 1.7, the one that is instantiated in Verilog), PG065 (Clocking Wizard 6.0), and the
AXI clock converter 2.1. Vivado has not been asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sat.fpga import vcu1525
from sat.rtl.config import AxiConfig

INTERCONNECT_ID_BITS = 4
"""That the interconnect adds to an ID, to know whose it is."""
ID_BITS = 4
"""Of those who ask; XDMA's have so many."""


@dataclass(frozen=True)
class Ip:
    """A block.

    Parameters
    ----------
    name : str
        Of its module.
    vlnv : str
        What Vivado's catalogue calls it.
    settings : mapping of str to str
        Its properties, less ``CONFIG.``
    ports : dict
        Direction, ``input``, ``output`` or ``inout``, and bits of each port.
    """

    name: str
    vlnv: str
    settings: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def stub(self) -> str:
        """Return Verilog of a module with its ports and nothing inside."""
        ports = ", ".join(
            f"{way} wire [{bits - 1}:0] {port}" for port, (way, bits) in self.ports.items()
        )
        return f"module {self.name} ({ports});\nendmodule\n"


def _one_way(way: str, names: str) -> dict[str, tuple[str, int]]:
    """Return ports of a direction, given as ``name`` or ``name:bits``."""
    found = (name.partition(":") for name in names.split())
    return {name: (way, int(bits or 1)) for name, _, bits in found}


def axi_ports(
    prefix: str,
    data: int,
    address: int,
    ids: int,
    *,
    master: bool,
    upper: bool = False,
    more: str = "",
) -> dict[str, tuple[str, int]]:
    """Return the ports of an AXI4 bus of a block.

    Parameters
    ----------
    prefix : str
    data, address, ids : int
        Bits.
    master : bool
        Whether the block asks.
    upper : bool
        Whether its names are written in capitals.
    more : str
        Signals of both address channels that not every bus has, such as ``qos:4``.
    """  # fmt: skip
    channel = f"addr:{address} len:8 size:3 burst:2 lock:1 cache:4 prot:3 valid {more}"
    asks = " ".join(f"{way}{name}" for way in ("aw", "ar") for name in channel.split())
    asks += f" wdata:{data} wstrb:{data // 8} wlast wvalid bready rready"
    answers = f"awready arready wready bresp:2 bvalid rdata:{data} rresp:2 rlast rvalid"
    if ids:
        asks += f" awid:{ids} arid:{ids}"
        answers += f" bid:{ids} rid:{ids}"
    ways = ("output", "input") if master else ("input", "output")
    ports = {**_one_way(ways[0], asks), **_one_way(ways[1], answers)}
    return {prefix + (name.upper() if upper else name): what for name, what in ports.items()}


def lite_ports(prefix: str, address: int, *, master: bool) -> dict[str, tuple[str, int]]:
    """Return the ports of an AXI4-Lite bus of 32 bits of a block."""
    asks = f"awaddr:{address} awprot:3 awvalid wdata:32 wstrb:4 wvalid bready "
    asks += f"araddr:{address} arprot:3 arvalid rready"
    answers = "awready wready bresp:2 bvalid arready rdata:32 rresp:2 rvalid"
    ways = ("output", "input") if master else ("input", "output")
    ports = {**_one_way(ways[0], asks), **_one_way(ways[1], answers)}
    return {prefix + name: what for name, what in ports.items()}


def blocks(axi: AxiConfig, lite_bits: int, clock_hz: int) -> tuple[Ip, ...]:
    """Return the blocks of a card.

    Parameters
    ----------
    axi : AxiConfig
        The device's data port.
    lite_bits : int
        Bits of an address of its registers.
    clock_hz : int
        Of the device.
    """
    width, ids = vcu1525.MEMORY_ADDRESS_BITS, ID_BITS + INTERCONNECT_ID_BITS
    return (
        Ip(
            "xdma_0",
            "xilinx.com:ip:xdma:4.1",
            {
                "mode_selection": "Advanced",
                "pl_link_cap_max_link_speed": "8.0_GT/s",
                "pl_link_cap_max_link_width": f"X{vcu1525.PCIE_LANES}",
                "axi_data_width": "512_bit",
                "axisten_freq": "250",
                "axilite_master_en": "true",
                "axilite_master_size": "64",
                "axilite_master_scale": "Kilobytes",
                "xdma_rnum_chnl": "1",
                "xdma_wnum_chnl": "1",
                "xdma_axi_intf_mm": "AXI_Memory_Mapped",
                "cfg_mgmt_if": "false",
            },
            {
                **_one_way("input", "sys_clk sys_clk_gt sys_rst_n usr_irq_req"),
                **_one_way("input", f"pci_exp_rxp:{vcu1525.PCIE_LANES}"),
                **_one_way("input", f"pci_exp_rxn:{vcu1525.PCIE_LANES}"),
                **_one_way("output", f"pci_exp_txp:{vcu1525.PCIE_LANES}"),
                **_one_way("output", f"pci_exp_txn:{vcu1525.PCIE_LANES}"),
                **_one_way("output", "user_lnk_up axi_aclk axi_aresetn usr_irq_ack"),
                **_one_way("output", "msi_enable msi_vector_width:3"),
                **axi_ports("m_axi_", 512, 64, ID_BITS, master=True),
                **lite_ports("m_axil_", 32, master=True),
            },
        ),
        Ip(
            "ddr4_0",
            "xilinx.com:ip:ddr4:2.2",
            {
                "C0.DDR4_MemoryType": "RDIMMs",
                "C0.DDR4_MemoryPart": vcu1525.MEMORY_PART,
                "C0.DDR4_TimePeriod": "833",
                "C0.DDR4_InputClockPeriod": str(vcu1525.MEMORY_CLOCK_PS),
                "C0.DDR4_CasLatency": "17",
                "C0.DDR4_CasWriteLatency": "12",
                "C0.DDR4_DataWidth": "72",
                "C0.DDR4_DataMask": "NONE",
                "C0.DDR4_Ecc": "true",
                "C0.DDR4_AxiSelection": "true",
                "C0.DDR4_AxiDataWidth": "512",
                "C0.DDR4_AxiAddressWidth": str(width),
                "C0.DDR4_AxiIDWidth": str(ids),
                "C0.DDR4_Mem_Add_Map": "ROW_COLUMN_BANK_INTLV",
                "C0.BANK_GROUP_WIDTH": "2",
                "C0.CKE_WIDTH": "1",
                "C0.CS_WIDTH": "1",
                "C0.ODT_WIDTH": "1",
            },
            {
                **_one_way("input", "sys_rst c0_sys_clk_p c0_sys_clk_n c0_ddr4_aresetn"),
                **_one_way("output", "c0_init_calib_complete c0_ddr4_ui_clk"),
                **_one_way("output", "c0_ddr4_ui_clk_sync_rst dbg_clk dbg_bus:512"),
                **_one_way("output", "c0_ddr4_interrupt c0_ddr4_act_n c0_ddr4_adr:17"),
                **_one_way("output", "c0_ddr4_ba:2 c0_ddr4_bg:2 c0_ddr4_cke c0_ddr4_odt"),
                **_one_way("output", "c0_ddr4_cs_n c0_ddr4_ck_t c0_ddr4_ck_c c0_ddr4_par"),
                **_one_way("output", "c0_ddr4_reset_n"),
                **_one_way("inout", "c0_ddr4_dq:72 c0_ddr4_dqs_t:18 c0_ddr4_dqs_c:18"),
                **axi_ports(
                    "c0_ddr4_s_axi_", 512, width, ids, master=False, more="qos:4"
                ),
                **{
                    port: what
                    for port, what in lite_ports(
                        "c0_ddr4_s_axi_ctrl_", 32, master=False
                    ).items()
                    if not port.endswith(("prot", "strb"))
                },
            },
        ),
        Ip(
            "axi_interconnect_0",
            "xilinx.com:ip:axi_interconnect:1.7",
            {
                "NUM_SLAVE_PORTS": "3",
                "AXI_ADDR_WIDTH": str(width),
                "THREAD_ID_WIDTH": str(ID_BITS),
                "INTERCONNECT_DATA_WIDTH": "512",
                "M00_AXI_DATA_WIDTH": "512",
                **{
                    f"S{number:02}_AXI_{name}": value
                    for number, bits in enumerate((512, axi.instructions.data_bits, axi.data_bits))
                    for name, value in (
                        ("DATA_WIDTH", str(bits)),
                        ("IS_ACLK_ASYNC", "1"),
                        ("REGISTER", "1"),
                        ("READ_ACCEPTANCE", "32"),
                        ("WRITE_ACCEPTANCE", "32"),
                        ("READ_FIFO_DEPTH", "512"),
                        ("WRITE_FIFO_DEPTH", "512"),
                    )
                },
                "M00_AXI_IS_ACLK_ASYNC": "0",
                "M00_AXI_REGISTER": "1",
                "M00_AXI_READ_ISSUING": "32",
                "M00_AXI_WRITE_ISSUING": "32",
            },
            {
                **_one_way("input", "INTERCONNECT_ACLK INTERCONNECT_ARESETN M00_AXI_ACLK"),
                **_one_way("output", "M00_AXI_ARESET_OUT_N"),
                **axi_ports("M00_AXI_", 512, width, ids, master=True, upper=True, more="qos:4"),
                **{
                    port: what
                    for number, bits in enumerate((512, axi.instructions.data_bits, axi.data_bits))
                    for prefix in (f"S{number:02}_AXI_",)
                    for port, what in (
                        (f"{prefix}ACLK", ("input", 1)),
                        (f"{prefix}ARESET_OUT_N", ("output", 1)),
                        *axi_ports(
                            prefix, bits, width, ID_BITS, master=False, upper=True, more="qos:4"
                        ).items(),
                    )
                },
            },
        ),
        Ip(
            "register_clock_0",
            "xilinx.com:ip:axi_clock_converter:2.1",
            {"PROTOCOL": "AXI4LITE", "ADDR_WIDTH": str(lite_bits), "DATA_WIDTH": "32",
             "ACLK_ASYNC": "1"},
            {
                **_one_way("input", "s_axi_aclk s_axi_aresetn m_axi_aclk m_axi_aresetn"),
                **lite_ports("s_axi_", lite_bits, master=False),
                **lite_ports("m_axi_", lite_bits, master=True),
            },
        ),
        Ip(
            "device_clock_0",
            "xilinx.com:ip:clk_wiz:6.0",
            {
                "PRIM_SOURCE": "No_buffer",
                "PRIM_IN_FREQ": f"{vcu1525.CONTROLLER_HZ / 1e6:g}",
                "CLKOUT1_REQUESTED_OUT_FREQ": f"{clock_hz / 1e6:g}",
                "USE_LOCKED": "true",
                "USE_RESET": "true",
            },
            {**_one_way("input", "clk_in1 reset"), **_one_way("output", "clk_out1 locked")},
        ),
    )  # fmt: skip
