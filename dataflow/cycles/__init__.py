"""The exact cycle model: what a program takes on the RTL, without running it.

Each engine's timing is stated once, in the C++ header that has the name of its file in ``rtl/``
(``dataflow/cycles/load.h`` for ``rtl/load.py``); ``tests/cosim`` holds the model to the RTL's own
count, cycle for cycle. What the model takes from the RTL's Python is in `definitions`.
"""

from sat.dataflow.cycles.model import EngineTiming as EngineTiming
from sat.dataflow.cycles.model import Prediction as Prediction
from sat.dataflow.cycles.model import Times as Times
from sat.dataflow.cycles.model import bursts as bursts
from sat.dataflow.cycles.model import predict as predict
