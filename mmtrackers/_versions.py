"""Whether the libraries that this package stands on closest have versions that it was tested with."""

import warnings
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

CLOSEST = ("transformers", "peft", "huggingface_hub")


def warn_of_untested_versions() -> None:
    """Warns, in one sentence, if one of them lies outside the bounds that the installed package states."""
    try:
        stated = [Requirement(text) for text in requires("mmtrackers") or []]
    except PackageNotFoundError:  # a checkout
        return
    tested = {each.name: each.specifier for each in stated if each.name in CLOSEST}
    found = {name: version(name) for name in tested}
    if any(not tested[name].contains(found[name], prereleases=True) for name in tested):
        warnings.warn(
            f"mmtrackers was tested with {', '.join(f'{name} {bounds}' for name, bounds in tested.items())}; here are "
            f"{', '.join(f'{name} {here}' for name, here in found.items())}. Should something fail: "
            "pip install --upgrade mmtrackers, or install the tested versions.",
            stacklevel=4,
        )


warn_of_untested_versions()
