"""Gives Python 3.8 and later back the names that Synapse of 2019 and its libraries of that time still import.

`up` puts this into the venv as legacy_synapse_compat with a .pth file that imports it, only where Python 3.7 is not
used (see tests/README.md). Nothing of Synapse itself is changed."""
import asyncio
import collections
import collections.abc
import inspect

for name in collections.abc.__all__:
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))

if not hasattr(inspect, "getargspec"):
    ArgSpec = collections.namedtuple("ArgSpec", "args varargs keywords defaults")

    def getargspec(func):
        spec = inspect.getfullargspec(func)
        return ArgSpec(spec.args, spec.varargs, spec.varkw, spec.defaults)

    inspect.ArgSpec = ArgSpec
    inspect.getargspec = getargspec

if not hasattr(asyncio, "coroutine"):
    import types

    asyncio.coroutine = types.coroutine
