"""Counts digits with a Dask bag; outside of a stage, ``Client()`` starts a local cluster by itself."""

from __future__ import annotations

import sys

import dask.bag
from distributed import Client

import rallypoint

if __name__ == "__main__":
    with Client():
        numbers = dask.bag.from_sequence(range(int(sys.argv[1])), npartitions=4)
        digits = numbers.map(str).map(len).sum().compute()
    rallypoint.stage().result({"digits": digits})
