"""The optional packages of this distribution; a producer's installation has none of the worker's."""

from importlib import metadata

from packaging.requirements import Requirement

from webhooks.errors import NotInstalled

#: The name on package indexes, where another project is called `webhooks`.
DISTRIBUTION = "celery-webhooks"


def require(extra: str, who: str = "this") -> None:
    """Check that all packages of an extra are installed in allowed versions; a checkout that is not installed passes.

    Args:
        extra: its name.
        who: subject of the error's text.

    Raises:
        NotInstalled: one line with the faulty packages and the command that installs them.
    """
    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return
    missing, faults = [], []
    for requirement in requirements:
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if missing:
        faults.insert(0, f"missing: {', '.join(missing)}")
    if faults:
        raise NotInstalled(
            f"{who} needs packages that a producer does not: "
            f"pip install '{DISTRIBUTION}[{extra}]' ({'; '.join(faults)})"
        )
