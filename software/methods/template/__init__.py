"""Template of a method: ridge regression by gradient descent. Copy the folder, then change it.

Source: Hoerl and Kennard, "Ridge regression", Technometrics 1970, equation 2.1 (the estimate).
"""

from sat.methods.template.ridge import Ridge

__all__ = ["Ridge"]
