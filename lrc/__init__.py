"""Linearize a classifier, and see whether its classes cluster by meaning, as those of robust models do.

>>> import lrc
>>> model = lrc.zoo.load("cifar10-resnet8-at")
>>> W = lrc.linear_map(model)
>>> tuple(W.shape)
(10, 3, 32, 32)
>>> C = lrc.class_correlation(W, centre=True)
>>> lrc.cut(lrc.tree(C), 2)
[[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]

The public names are those in `__init__.pyi`. Each is imported when it is first used.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
