"""What the book trains, measures and records: recipes, the zoo, studies, profiles and claims.

It may use every room below; of it only inspection, the command line, the book and the public names of `lrc` know.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["claims", "profiles", "recipe", "studies", "zoo"])
