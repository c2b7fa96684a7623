"""The older name of `sat.dataflow.compile.step`."""

from sat.dataflow.compile.step import STAGES as STAGES
from sat.dataflow.compile.step import CompiledStep as CompiledStep
from sat.dataflow.compile.step import Sgd as Sgd
from sat.dataflow.compile.step import compile_step as compile_step
