"""What a candidate is: augmentation policies, their engine, their files and their search space.

Usable on its own; importing it loads neither torch nor anything of the search until a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spaces.augment import PolicyAugment as PolicyAugment
    from spaces.errors import UserError as UserError
    from spaces.policy import Chain as Chain
    from spaces.policy import Mixing as Mixing
    from spaces.policy import Operation as Operation
    from spaces.policy import Policy as Policy
    from spaces.policy import Range as Range
    from spaces.policy import load_policy as load_policy
    from spaces.schemes import scheme as scheme
    from spaces.space import PolicySpace as PolicySpace

# The command line reads `spaces.errors` before it knows whether torch is needed: load on first use.
_HOMES = {
    "Chain": "spaces.policy",
    "Mixing": "spaces.policy",
    "Operation": "spaces.policy",
    "Policy": "spaces.policy",
    "PolicyAugment": "spaces.augment",
    "PolicySpace": "spaces.space",
    "Range": "spaces.policy",
    "UserError": "spaces.errors",
    "load_policy": "spaces.policy",
    "scheme": "spaces.schemes",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spaces' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
