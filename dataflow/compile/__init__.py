"""From products and layers to programs: plans of what lies where, and when which engine runs.

A planner (`planner`) says which operands each MULTIPLY needs (`slots`) and turns them into
instructions; `output_stationary` and `weight_stationary` plan single products (`product`), the
others the stages of a layer (`step`).
"""

from sat.dataflow.compile.memory import MemoryMap as MemoryMap
from sat.dataflow.compile.memory import memory_map as memory_map
from sat.dataflow.compile.product import CompiledProduct as CompiledProduct
from sat.dataflow.compile.product import compile_product as compile_product
from sat.dataflow.compile.step import STAGES as STAGES
from sat.dataflow.compile.step import CompiledStep as CompiledStep
from sat.dataflow.compile.step import Sgd as Sgd
from sat.dataflow.compile.step import compile_step as compile_step
