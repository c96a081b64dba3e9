"""What is installed beside the bare package: a producer's installation has nothing of the worker."""

from importlib import metadata

from packaging.requirements import Requirement

from webhooks.errors import NotInstalled

#: The name on package indexes. Another project is called `webhooks` there.
DISTRIBUTION = "celery-webhooks"


def require(extra: str, who: str = "this") -> None:
    """Make sure that all packages of an extra are installed, in versions that it allows.

    Args:
        extra: its name.
        who: subject of the error's text.

    Raises:
        NotInstalled: one line that names those that are not, and the command that installs them.
    """
    faults = find_faults(extra)
    if faults:
        raise NotInstalled(
            f"{who} needs packages that a producer does not: pip install '{DISTRIBUTION}[{extra}]' ({faults})"
        )


def find_faults(extra: str) -> str:
    """Say which packages of an extra are missing or of the wrong version; empty where none are.

    A checkout that was not installed says nowhere what it needs; there it is empty.
    """
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return ""
    missing, wrong = [], []
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return "; ".join([*([f"missing: {', '.join(missing)}"] if missing else []), *wrong])
