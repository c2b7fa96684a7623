"""Problems that several methods are judged on: data, models, and the loop that trains them.

No method of its own, so it is not in the registry. `text`: characters of Python's own help;
`gpt`: a small transformer on them, its training loop and schedule; `optimizer`, `parameters`: an
optimiser's frame that checks everything before it changes anything; `orthogonal`: Newton-Schulz;
`rounding`: how exact the products are that a demo's float64 checks rest on; `darcy`, `diffusion`,
`periodic`, `poisson`: boundary value problems and their solvers, in numpy, scipy and scikit-fem;
`navier_stokes`, `burgers`, by steps of `integrating`: flows; `granular`: discs; `fields`: random
data, and the error they are judged by; `normalizer`: fields by their statistics; `jets`: networks
with derivatives; `training`: loops over samples and fresh points; `mixtures`: exact scores;
`frechet`: samples judged by their moments; `embedding`: sines and cosines of places and times;
`arguments`: rules of arguments.
"""
