"""The op, and its parts for those who drive the kernels from a loop of their own.

`tree_attention` does all of it. `plan_attention` does what layers share, once per step
and kind of layer. `make_spec`, `prepare` and `attend` are the three steps on Hopper:
sizes once, work lists once per step, kernels once per layer.

`__init__.pyi` lists the public names; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
