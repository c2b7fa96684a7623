"""Replicated leaves simulated side by side: from a netlist to C++ on vectors of lanes.

A thousand equal processing elements are one small netlist over a thousand states. `netlist` has
Yosys flatten a leaf into word-level cells, `cells` translates each kind of cell, `values` places
words in lanes, `leaf` puts a leaf's cycle together, `grid` lays leaves out as the array has them.
"""
